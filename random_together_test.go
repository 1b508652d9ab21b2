package flyregion

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
)

const (
	// randomTogether is how many programs run at once.
	randomTogether = 4
	// randomQuota is how many connections each of them holds at most.
	randomQuota = 2
)

// newRandomTogether makes programs that run at once.
func newRandomTogether(seed uint64) (programs []*randomProgram) {
	for i := range uint64(randomTogether) {
		g := newRandomGenerator(seed*randomTogether+i, 11)
		p := g.program
		p.maxConns, p.simulate, p.together = randomQuota, false, true
		p.awaitWrites = false // PrepareConn would have to be done within its 20 ms
		p.mark = fmt.Sprintf(" /* program %d */", i)
		if i > 0 {
			// The Pool is the same.
			p.mode, p.prepared = programs[0].mode, programs[0].prepared
		}
		g.fill()
		programs = append(programs, p)
	}
	return programs
}

// checkTogether runs several programs at once on one Pool, each in a schema of its own and all in the process's session, unless
// they have their own. There are fewer connections than the programs would hold at most, and replay halts for all of them.
// It fails the test if one does not see what it sees alone on pgxpool. keep is which of the programs are to be kept.
func (l *randomLab) checkTogether(seed uint64, keep []int, verbose bool) {
	l.t.Helper()
	var programs []*randomProgram
	for i, p := range newRandomTogether(seed) {
		for _, k := range keep {
			if i == k {
				programs = append(programs, p)
			}
		}
		if keep == nil {
			programs = append(programs, p)
		}
	}
	var wants []*randomResult
	for _, p := range programs {
		wants = append(wants, l.run(p, nil))
	}
	got := l.runTogether(programs, wants)
	failed := false
	for i, p := range programs {
		if difference := l.differ(p, wants[i], got[i], verbose); difference != "" {
			failed = true
			l.t.Errorf("FLYREGION_RANDOM_SEED=together-%d (program%s)\n%s\n%s", seed, p.mark, p, difference)
		}
	}
	if failed {
		l.failures++
	}
}

type randomSchemaKey struct{}

// runTogether runs programs on one Pool, each on a goroutine of its own.
func (l *randomLab) runTogether(programs []*randomProgram, wants []*randomResult) (results []*randomResult) {
	l.t.Helper()
	schema := func(i int) string { return fmt.Sprint(randomOurSchema, i) }
	var machines []*randomMachine
	for i, p := range programs {
		l.prepare(schema(i))
		machines = append(machines, &randomMachine{lab: l, program: p, schema: schema(i)})
		results = append(results, &randomResult{skipped: make([]bool, len(p.ops))})
	}
	defer l.resume()

	config := l.config(programs[0], "ord", schema(0))
	// With one connection less they could wait for each other.
	config.MaxConns = int32(len(programs)*(randomQuota-1) + 1)
	config.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
		own, _ := ctx.Value(randomSchemaKey{}).(string)
		data := conn.PgConn().CustomData()
		if own == "" || data["random schema"] == own {
			return true, nil
		}
		_, err := conn.Exec(ctx, "set search_path = "+own)
		data["random schema"] = own
		return err == nil, err
	}
	doing := func() (doing string) {
		for _, m := range machines {
			doing += m.doing() + "\n"
		}
		return doing
	}
	left := l.labelled(doing, func(ctx context.Context) {
		pool, err := NewPoolWithConfig(ctx, config)
		if err != nil {
			results[0].end = append(results[0].end, "cannot open the pool: "+err.Error())
			return
		}
		var running sync.WaitGroup
		for i, m := range machines {
			m.use(pool)
			m.under(context.WithValue(ctx, randomSchemaKey{}, m.schema))
			running.Go(func() { m.all(results[i], wants[i].skipped) })
		}
		running.Wait()
		closer := &randomMachine{lab: l, program: &randomProgram{}, schema: randomOurSchema}
		closer.use(pool)
		closer.closePool()
		for i, m := range machines {
			results[i].end = append(append(m.saw, closer.saw...), l.contents(m.schema)...)
			results[i].wrong = m.wrong
		}
	})
	if left = strings.TrimSpace(left); left != "" {
		results[0].end = append(results[0].end, left)
	}
	return results
}
