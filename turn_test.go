package flyregion

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestTurn(t *testing.T) {
	var turn turn
	if !turn.take(time.Hour) {
		t.Fatal("nobody has taken it, and it is not free")
	}
	if turn.take(0) {
		t.Fatal("two have taken it")
	}
	turn.end()
	if turn.take(time.Hour) {
		t.Fatal("it is taken without a pause")
	}
	if !turn.take(0) {
		t.Fatal("it is not free after the pause")
	}
	turn.end()
}

// TestTurnOfMany has many take one turn at the same time.
func TestTurnOfMany(t *testing.T) {
	for range 200 {
		var turn turn
		var taken, inside atomic.Int32
		var callers sync.WaitGroup
		for range 8 {
			callers.Go(func() {
				for range 20 {
					if !turn.take(time.Hour) {
						continue
					}
					if inside.Add(1) > 1 {
						t.Error("two have taken it")
					}
					inside.Add(-1)
					taken.Add(1)
					turn.end()
				}
			})
		}
		callers.Wait()
		if n := taken.Load(); n != 1 {
			t.Fatalf("it was taken %d times without a pause", n)
		}
	}
}
