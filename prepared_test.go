package flyregion

import (
	"fmt"
	"strings"
	"testing"
)

func TestPreparedNames(t *testing.T) {
	var n preparedNames
	if text, ok := n.lookup("get"); ok {
		t.Errorf("of nothing it knows %q", text)
	}
	long := strings.Repeat("x", maxPreparedName+1)
	n.add("get", "select 1")
	n.add("get", "select 1")
	n.add("both", "select 1")
	n.add("both", "delete from t")
	n.add("both", "select 1")
	n.add(long, "select 1")
	for name, want := range map[string]string{"get": "select 1", "both": "", long: "", "other": ""} {
		if text, ok := n.lookup(name); text != want || ok != (want != "" || name == "both") {
			t.Errorf("%s stands for %q, %v, want %q", name, text, ok, want)
		}
	}

	for i := range 2 * maxPreparedNames {
		n.add(fmt.Sprint("invented", i), "select 1")
	}
	if known := len(*n.sqlByName.Load()); known != maxPreparedNames {
		t.Errorf("it knows %d names, want %d", known, maxPreparedNames)
	}
	n.add("get", "delete from t")
	if text, ok := n.lookup("get"); text != "" || !ok {
		t.Errorf("when it is full a name that has two meanings stands for %q", text)
	}
}
