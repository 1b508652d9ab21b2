package flyregion

import (
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestRandomPrograms runs programs that are made up by chance on plain pgxpool, straight on the primary, and on a Pool
// in another region whose replica halts and continues all the while. Every operation must give the same on both: values,
// command tags, errors with their types and texts, panics. As the programs do one thing after the other, that is also the
// test that no read is stale. When a program is over, all tables must hold the same, no connection may be in use, Close
// must return and no goroutine may be left. What may differ, and why, is in randomLicenses.
//
// Some programs have their links cut; see newRandomCutProgram. Some run together on one Pool; see checkTogether.
//
// It runs for a part of a minute. In the environment,
//
//	FLYREGION_RANDOM=10m go test -run TestRandomPrograms -timeout 20m .
//
// has it run for as long as one likes, with programs that nobody has seen. A failure names its program, which
// FLYREGION_RANDOM_SEED=n repeats, and shows what is left of it when all that the failure does not need is dropped;
// FLYREGION_RANDOM_SEED=n:3,17 keeps operations 3 and 17. FLYREGION_RANDOM_SEED=cut- and together- run those programs alone.
func TestRandomPrograms(t *testing.T) {
	t.Parallel()
	duration, most, failures, first := 40*time.Second, 1_000, 1, uint64(1)
	if testing.Short() {
		duration, most = 5*time.Second, 100
	}
	if text := os.Getenv("FLYREGION_RANDOM"); text != "" {
		var err error
		if duration, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
		most, failures, first = 1<<30, 10, rand.Uint64()>>1
	}
	deadline := time.Now().Add(duration)
	if d, ok := t.Deadline(); ok && time.Until(d) < duration+time.Minute {
		t.Fatalf("-timeout leaves too little time for %v", duration)
	}
	checks := map[string]randomCheck{"": checkOne(newRandomProgram), "cut-": checkOne(newRandomCutProgram), "together-": (*randomLab).checkTogether}
	kinds := []string{"", "cut-", "", "together-"}
	if text := os.Getenv("FLYREGION_RANDOM_SEED"); text != "" {
		kind := text[:strings.LastIndexByte(text, '-')+1]
		seed, keep, err := parseRandomSeed(text[len(kind):])
		if err != nil || checks[kind] == nil {
			t.Fatalf("FLYREGION_RANDOM_SEED=%s: %v", text, err)
		}
		if seed != 0 {
			checks[kind](newRandomLab(t), seed, keep, true)
			return
		}
		kinds = []string{kind}
	}

	lab := newRandomLab(t)
	done := map[string]int{}
	for i := 0; i < most && time.Now().Before(deadline) && lab.failures < failures; i++ {
		kind := kinds[i%len(kinds)]
		checks[kind](lab, first+uint64(i), nil, false)
		done[kind]++
	}
	t.Logf("%v programs of %d operations (%d of them had nothing to work on), the first with FLYREGION_RANDOM_SEED=%d; licensed differences: %v; "+
		"with the link to the primary: %v", done, lab.operations, lab.idle, first, lab.licensed, lab.cuts)
	if lab.sent["replica"] == 0 || lab.sent["primary"] == 0 {
		t.Errorf("the programs did not use both servers: %v", lab.sent)
	}
}

// parseRandomSeed reads a seed, which is 0 if there is none, and the numbers of what is to be kept, nil for all.
func parseRandomSeed(text string) (seed uint64, keep []int, err error) {
	if text == "" {
		return 0, nil, nil
	}
	number, list, chosen := strings.Cut(text, ":")
	if seed, err = strconv.ParseUint(number, 10, 64); err != nil || !chosen {
		return seed, nil, err
	}
	for field := range strings.SplitSeq(list, ",") {
		i, err := strconv.Atoi(field)
		if err != nil {
			return 0, nil, err
		}
		keep = append(keep, i)
	}
	return seed, keep, nil
}

// randomCheck makes what a seed stands for, and checks it. keep is what of it is to be kept, nil for all.
type randomCheck func(l *randomLab, seed uint64, keep []int, verbose bool)

// checkOne checks one program.
func checkOne(program func(seed uint64) *randomProgram) randomCheck {
	return func(l *randomLab, seed uint64, keep []int, verbose bool) {
		l.t.Helper()
		p := program(seed)
		if keep != nil {
			p = p.only(keep)
		}
		l.check(p, verbose)
	}
}

// check runs a program on both pools and fails the test if they differ.
func (l *randomLab) check(p *randomProgram, verbose bool) {
	l.t.Helper()
	if verbose {
		l.t.Logf("%s", p)
	}
	difference := l.compare(p, verbose)
	if difference == "" {
		return
	}
	l.failures++
	whole := len(p.ops)
	if !verbose {
		p, difference = l.shrink(p, difference)
	}
	l.t.Errorf("FLYREGION_RANDOM_SEED=%s (%d operations, %d left)\n%s\n%s", p.name(), whole, len(p.ops), p, difference)
}

// shrink drops operations from a program as long as what is left still fails, in a way that may be another.
func (l *randomLab) shrink(p *randomProgram, difference string) (*randomProgram, string) {
	deadline := time.Now().Add(time.Minute)
	for size := max(1, len(p.ops)/2); ; size /= 2 {
		for dropped := true; dropped; {
			dropped = false
			for from := len(p.ops); from > 0; {
				from = max(0, from-size)
				rest := p.without(from, min(from+size, len(p.ops)))
				if time.Now().After(deadline) {
					return p, difference + "\n(there was no time to shrink it further)"
				}
				if d := l.compare(rest, false); d != "" {
					p, difference, dropped = rest, d, true
				}
			}
			if size > 1 {
				break
			}
		}
		if size <= 1 {
			return p, difference
		}
	}
}

// compare runs a program on both pools and says in what they differ, "" if in nothing.
func (l *randomLab) compare(p *randomProgram, verbose bool) string {
	want := l.run(p, nil)
	skip := want.skipped
	if p.cuts == "nrt" {
		skip = make([]bool, len(p.ops)) // the Pool has other connections left by then
	}
	got := l.run(p, skip)
	return l.differ(p, want, got, verbose)
}

// differ says in what two results of a program differ, "" if in nothing.
func (l *randomLab) differ(p *randomProgram, want, got *randomResult, verbose bool) string {
	if verbose {
		for i, op := range p.ops {
			l.t.Logf("%d %s\n\tpgxpool:   %s\n\tflyregion: %s", op.index, op.text, strings.Join(want.saw[i], "\n\t           "),
				strings.Join(got.saw[i], "\n\t           "))
		}
	}
	if len(want.wrong) > 0 {
		return "with pgxpool:\n" + strings.Join(want.wrong, "\n")
	}
	if len(got.wrong) > 0 {
		return strings.Join(got.wrong, "\n")
	}
	if p.cuts == "nrt" {
		l.operations += len(p.ops)
		return ""
	}
	for i, op := range p.ops {
		l.operations++
		if len(want.saw[i]) == 1 && want.saw[i][0] == nothingToDo {
			l.idle++
		}
		if slices.Equal(want.saw[i], got.saw[i]) {
			continue
		}
		if name := licensed(op, want.saw[i], got.saw[i]); name != "" {
			l.licensed[name]++
			continue
		}
		return fmt.Sprintf("operation %d: %s\n%s", op.index, op.text, difference(want.saw[i], got.saw[i]))
	}
	// What closeAll ends may be busy, and pgx then says what it could not forget there: see the license "first use".
	if d := difference(withoutPreparing(want.end), withoutPreparing(got.end)); d != "" {
		return "at the end:\n" + d
	}
	return ""
}

// randomLicense is a difference that is as it should be.
type randomLicense struct {
	name string
	why  string
	// holds says whether the difference is this one.
	holds func(op *randomOp, want, got []string) bool
}

// randomLicenses are all that may differ. The README has them too.
var randomLicenses = []randomLicense{
	{
		name: "first use",
		why: "A text is prepared on each server when it is first used there, so that an error may come from " +
			"the preparation with one pool (a pgconn.PrepareError or a pgx.ErrPreprocessingBatch, from Query) and from the execution with " +
			"the other. Likewise a text that failed is forgotten by each server's connection when that is next used.",
		holds: func(_ *randomOp, want, got []string) bool {
			return slices.Equal(withoutPreparing(want), withoutPreparing(got))
		},
	},
	{
		name: "two mistakes",
		why: "QueryRow has the server's error, or that of a context that has ended, before Scan is called, and Scan returns it where pgx finds fault with the " +
			"destinations first.",
		holds: func(op *randomOp, want, got []string) bool {
			return strings.Contains(op.text, "driver bytes") && strings.Contains(want[0], "DriverBytes") &&
				(strings.Contains(got[0], "PgError") || strings.Contains(got[0], "context already done"))
		},
	},
	{
		name: "prepared twice",
		why: "database/sql prepares a statement under the name that pgx's cache gives it, so that the other finds the name taken where " +
			"the connection is the same.",
		holds: func(_ *randomOp, want, got []string) bool {
			return strings.Contains(strings.Join(want, ""), "Code:42P05") != strings.Contains(strings.Join(got, ""), "Code:42P05")
		},
	},
	{
		name: "closed twice",
		why: "The first Close of a batch whose callbacks ignored an error returns nil. With pgx the second returns that error, " +
			"and with the Pool nil again.",
		holds: func(_ *randomOp, want, got []string) bool {
			closedTwice := func(line string) bool { return strings.HasPrefix(line, "close again") }
			return slices.Equal(slices.DeleteFunc(slices.Clone(want), closedTwice), slices.DeleteFunc(slices.Clone(got), closedTwice))
		},
	},
	{
		name: "lost behind the first row",
		why:  "A read whose connection to the replica is cut when a row of it was delivered.",
		holds: func(_ *randomOp, want, got []string) bool {
			text := strings.Join(got, " ")
			return strings.Contains(text, "row [") && (strings.Contains(text, "unexpected EOF") || strings.Contains(text, "connection reset"))
		},
	},
	{
		name: "refused or miscounted",
		why: "A statement with a wrong number of arguments in a transaction that has failed, under a context that has ended, or in a batch on " +
			"a busy connection: pgx counts the arguments first if it has prepared the statement there, and else the preparation is refused first.",
		holds: func(op *randomOp, want, got []string) bool {
			refused := func(line string) bool {
				return strings.Contains(line, "(SQLSTATE 25P02)") ||
					strings.Contains(op.text, " canceled ") && strings.Contains(line, "context already done: context canceled") ||
					strings.Contains(op.text, ".SendBatch(") && strings.Contains(line, "conn busy")
			}
			miscounted := func(line string) bool { return strings.Contains(line, "arguments, got") }
			want, got = withoutPreparing(want), withoutPreparing(got)
			for i := range min(len(want), len(got)) {
				if a, b := want[i], got[i]; a != b && !(refused(a) && miscounted(b)) && !(miscounted(a) && refused(b)) {
					return false
				}
			}
			return len(want) == len(got)
		},
	},
	{
		name: "during recovery",
		why: "A standby refuses some writes of a read-only transaction in other words (cannot execute COPY during recovery), " +
			"with the same SQLSTATE 25006.",
		holds: func(_ *randomOp, want, got []string) bool {
			return strings.Contains(strings.Join(got, ""), "during recovery") && slices.Equal(withoutWords(want), withoutWords(got))
		},
	},
}

var preparing = strings.NewReplacer("*fmt.wrapError > *pgconn.PrepareError > ", "", "*pgconn.PrepareError > ", "", "pgx.ErrPreprocessingBatch > ", "",
	"error preprocessing batch (prepare): ", "", "error preprocessing batch (describe): ", "",
	"*fmt.wrapError > *pgconn.", "*pgconn.", "failed to deallocate cached statement(s): ", "", "statement description failed: ", "")

var pgErrorDetails = regexp.MustCompile(`\{Severity:.*Code:(.....) .*Routine:\w*\}`)

var pgErrorWords = regexp.MustCompile(`Code:25006.*`)

// withoutWords drops what is said about a refused write.
func withoutWords(lines []string) (rest []string) {
	for _, line := range lines {
		rest = append(rest, pgErrorWords.ReplaceAllString(line, ""))
	}
	return rest
}

// withoutPreparing drops from what was seen how far a statement had come that failed.
func withoutPreparing(lines []string) (rest []string) {
	for _, line := range lines {
		line = preparing.Replace(line)
		line = pgErrorDetails.ReplaceAllString(line, "$1")
		if strings.HasPrefix(line, "query ") {
			continue // the rows have the error as well
		}
		rest = append(rest, line)
	}
	return rest
}

// licensed returns the name of the license that a difference has, "" if it has none.
func licensed(op *randomOp, want, got []string) string {
	for _, license := range randomLicenses {
		if license.holds(op, want, got) {
			return license.name
		}
	}
	return ""
}
