package flyregion

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// randomProgram is what a pool is to do, one operation after the other. A seed makes the same program each time.
type randomProgram struct {
	seed        uint64
	mode        pgx.QueryExecMode
	maxConns    int32
	session     bool // all of it is under a session
	prepared    bool // AfterConnect prepares randomPrepared
	simulate    bool // the replica is SimulateReplica's
	awaitWrites bool
	prefix      string // of its name
	cuts        string // the region of the server whose link breaks; "" for none
	together    bool   // others run on the same Pool
	mark        string // a comment that tells its statements from those of the others
	ops         []*randomOp
	dropped     bool
}

// randomOp is an operation. It works on what the ones before it have left in the machine's slots, and does nothing if that
// is not what it needs, so that any of them may be dropped.
type randomOp struct {
	index int
	text  string // what it does
	needs int    // connections of the pool that have to be free
	run   func(m *randomMachine)
}

// name is what FLYREGION_RANDOM_SEED takes.
func (p *randomProgram) name() string {
	if !p.dropped {
		return fmt.Sprint(p.prefix, p.seed)
	}
	var kept []string
	for _, op := range p.ops {
		kept = append(kept, fmt.Sprint(op.index))
	}
	return fmt.Sprintf("%s%d:%s", p.prefix, p.seed, strings.Join(kept, ","))
}

// sleeping is the pattern of its statements that sleep.
func (p *randomProgram) sleeping() string { return "%pg_sleep(60)%" + p.mark }

// String shows the program.
func (p *randomProgram) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "mode=%v MaxConns=%d session=%v prepared=%v simulated=%v awaits=%v", p.mode, p.maxConns, p.session, p.prepared, p.simulate, p.awaitWrites)
	for _, op := range p.ops {
		fmt.Fprintf(&b, "\n%4d %s", op.index, op.text)
	}
	return b.String()
}

func (p *randomProgram) with(ops []*randomOp) *randomProgram {
	q := *p
	q.ops, q.dropped = ops, true
	return &q
}

// without returns the program without some of its operations.
func (p *randomProgram) without(from, to int) *randomProgram {
	return p.with(slices.Concat(p.ops[:from], p.ops[to:]))
}

// only returns the program with the operations of these numbers.
func (p *randomProgram) only(keep []int) *randomProgram {
	return p.with(slices.DeleteFunc(slices.Clone(p.ops), func(op *randomOp) bool { return !slices.Contains(keep, op.index) }))
}

// randomGenerator makes up programs.
type randomGenerator struct {
	*rand.Rand
	program *randomProgram
	opened  map[randomPlace]bool // what is probably in the slots
	makers  []randomMaker
}

func newRandomProgram(seed uint64) *randomProgram {
	g := newRandomGenerator(seed, 9)
	g.fill()
	return g.program
}

// newRandomGenerator begins a program that has no operations yet.
func newRandomGenerator(seed, kind uint64) *randomGenerator {
	g := &randomGenerator{Rand: rand.New(rand.NewPCG(seed, kind)), opened: map[randomPlace]bool{}, makers: slices.Clone(randomMakers)}
	p := &randomProgram{
		seed:        seed,
		mode:        randomModes[0],
		maxConns:    []int32{1, 2, 3, 4, 8, 8, 8, 8}[g.IntN(8)],
		session:     g.one(4),
		prepared:    g.one(4),
		simulate:    g.one(5),
		awaitWrites: g.one(12),
	}
	if g.one(3) {
		p.mode = randomModes[g.IntN(len(randomModes))]
	}
	g.program = p
	return g
}

// fill makes up the program's operations.
func (g *randomGenerator) fill() {
	p := g.program
	for n := 10 + g.IntN(40); len(p.ops) < n; {
		op := g.operation()
		op.index = len(p.ops)
		p.ops = append(p.ops, op)
	}
}

// one is true one time in n.
func (g *randomGenerator) one(n int) bool { return g.IntN(n) == 0 }

// pick returns one of several.
func pick[T any](g *randomGenerator, of ...T) T { return of[g.IntN(len(of))] }

// randomMaker makes operations of a kind.
type randomMaker struct {
	weight int
	make   func(g *randomGenerator) *randomOp
}

// randomMakers make operations, each as often as its weight says.
var randomMakers = []randomMaker{
	{40, (*randomGenerator).statement},
	{12, (*randomGenerator).look},
	{8, (*randomGenerator).begin},
	{8, (*randomGenerator).endTx},
	{8, (*randomGenerator).acquire},
	{5, (*randomGenerator).giveBack},
	{7, (*randomGenerator).batch},
	{5, (*randomGenerator).nextOfRows},
	{3, (*randomGenerator).nextOfBatch},
	{4, (*randomGenerator).acquireFunc},
	{4, (*randomGenerator).beginFunc},
	{4, (*randomGenerator).copyFrom},
	{2, (*randomGenerator).busy},
	{2, (*randomGenerator).prepare},
	{2, (*randomGenerator).canceledDuring},
	{2, (*randomGenerator).abandon},
	{1, (*randomGenerator).lateWrite},
	{6, (*randomGenerator).replay},
	{2, (*randomGenerator).upkeep},
	{6, (*randomGenerator).raw},
	{3, (*randomGenerator).pipeline},
	{16, (*randomGenerator).sqlStatement},
	{7, (*randomGenerator).sqlOpen},
	{3, (*randomGenerator).sqlState},
	{5, (*randomGenerator).sqlClose},
}

func (g *randomGenerator) operation() *randomOp {
	total := 0
	for _, maker := range g.makers {
		total += maker.weight
	}
	n := g.IntN(total)
	for _, maker := range g.makers {
		if n -= maker.weight; n < 0 {
			if op := maker.make(g); op != nil {
				return op
			}
			return g.statement()
		}
	}
	panic("unreachable")
}

// place returns somewhere to run a statement: preferably somewhere that is open.
func (g *randomGenerator) place() randomPlace {
	if g.one(2) {
		return randomPlace{kind: onPool}
	}
	var open []randomPlace
	for _, kind := range []randomKind{onAcquired, onTx, onHijacked} {
		for slot := range randomSlots {
			if p := (randomPlace{kind, slot}); g.opened[p] {
				open = append(open, p)
			}
		}
	}
	if len(open) > 0 {
		return pick(g, open...)
	}
	return pick(g, randomPlace{kind: onPool}, randomPlace{kind: onPool}, randomPlace{kind: onPrimary})
}

// slotOf returns a place of one of the kinds that is probably open, or is not, as open says. If there is none it says so.
func (g *randomGenerator) slotOf(open bool, kinds ...randomKind) (p randomPlace, ok bool) {
	var fit []randomPlace
	for _, kind := range kinds {
		for slot := range randomSlots {
			if p := (randomPlace{kind, slot}); g.opened[p] == open {
				fit = append(fit, p)
			}
		}
	}
	if len(fit) == 0 {
		return randomPlace{kinds[0], 0}, false
	}
	return pick(g, fit...), true
}

// lane is where the ids begin that belong to a place, so that nobody waits for the locks of another.
func (p randomPlace) lane() int {
	kinds := []randomKind{onPool, onTx, onAcquired, onHijacked, onSQLTx, onSQLConn}
	i := max(0, slices.Index(kinds, p.kind))
	return (2*i + p.slot) * 20
}

// text returns a statement for a place.
func (g *randomGenerator) text(p randomPlace) randomText {
	for {
		text := pick(g, randomTexts...)
		if g.program.prepared && g.one(8) {
			text = pick(g, randomPreparedTexts...)
		}
		alone := p.kind == onAcquired || p.kind == onHijacked || p.kind == onSQLConn
		inTx := p.kind == onTx || p.kind == onSQLTx
		fits := true
		switch text.kind {
		case textSession, textBlock, textSeveralSession:
			fits = alone || text.kind == textSeveralSession && p.pools()
		case textInTx:
			fits = inTx
		case textDDLWide:
			fits = p.pools()
		}
		if fits {
			return text
		}
	}
}

// fitting says whether a text may be run at a place now: it must not wait for another transaction's locks.
func (m *randomMachine) fitting(text randomText, p randomPlace) bool {
	switch text.kind {
	case textWide, textDDL, textDDLWide:
		return m.alone(p)
	case textReadsPrimary:
		// A read-only transaction may be on the replica, and stays there.
		tx, sqlTx := m.txs[p.slot], m.sqlTxs[p.slot]
		return !(p.kind == onTx && tx.reads || p.kind == onSQLTx && sqlTx.reads)
	case textSession, textBlock, textSeveralSession:
		switch p.kind {
		case onAcquired:
			m.dirty[p.slot] = true
		case onSQLConn:
			m.sqlDirty[p.slot] = true
		}
	}
	return true
}

// under returns what a statement's context is to be, by a name that is "" for nothing special.
func (g *randomGenerator) under(p randomPlace, reads bool) string {
	if !g.one(8) {
		return ""
	}
	names := []string{"canceled", "primary", "canceled after"}
	if p.kind == onPool && reads && !g.program.awaitWrites && g.program.cuts == "" && !g.program.together { // where it may be too late, or lost
		names = append(names, "replica", "replica")
	}
	if p.kind == onPool && !reads {
		names = append(names, "without wait")
	}
	return pick(g, names...)
}

// context makes the context that under has named, and what to call when the statement has returned.
func (m *randomMachine) context(under string) (ctx context.Context, done func()) {
	switch under {
	case "canceled":
		return canceled(m.ctx), func() {}
	case "primary":
		return WithPrimary(m.ctx), func() {}
	case "without wait":
		return WithoutWait(m.ctx), func() {}
	case "replica":
		if m.ours != nil {
			m.lab.caughtUp()
		}
		return WithReplica(m.ctx), func() {}
	case "canceled after":
		return context.WithCancel(m.ctx)
	}
	return m.ctx, func() {}
}
