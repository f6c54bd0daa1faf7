package ledger

// Pair keeps a set of words that belong together: what Store wrote last is there whole, at whatever instruction its writer was killed. It has
// two places for them, and a word that says which one counts. One goroutine at a time writes.
type Pair struct {
	a     *Area
	at, n int
}

// PairWords is how many words of an area a Pair of n takes.
func PairWords(n int) int { return 1 + 2*n }

// NewPair is the pair of n words that begins at word at.
func NewPair(a *Area, at, n int) Pair { return Pair{a, at, n} }

// Store sets all words. v has n of them.
func (p Pair) Store(v []uint64) {
	turn := p.a.Load(p.at) + 1
	to := p.place(turn)
	for i, x := range v[:p.n] {
		p.a.Store(to+i, x)
	}
	p.a.Store(p.at, turn)
}

// Load reads them into v. false: they were never stored.
func (p Pair) Load(v []uint64) bool {
	turn := p.a.Load(p.at)
	from := p.place(turn)
	for i := range v[:p.n] {
		v[i] = p.a.Load(from + i)
	}
	return turn != 0
}

func (p Pair) place(turn uint64) int { return p.at + 1 + int(turn&1)*p.n }

// Journal changes a few words of very many in one step: it writes what is to be, says so, and does it. What a writer that was killed had said is
// done by the next one's NewJournal. One goroutine at a time uses it.
//
// The area has its words, and behind them room for as many changes as fit: see JournalWords.
type Journal struct {
	a    *Area
	n    int // words
	most int // changes
	set  []change
}

// change is what a word becomes.
type change struct {
	i int
	v uint64
}

// JournalWords is how many words an area of n and a journal of so many changes takes.
func JournalWords(n, changes int) int { return n + 1 + 2*changes }

// NewJournal takes over an area, and ends what a writer before had begun. It trusts nothing in it: indices outside are left out.
func NewJournal(a *Area, n, changes int) *Journal {
	j := &Journal{a: a, n: n, most: changes}
	k := int(min(a.Load(n), uint64(changes)))
	for c := range k {
		if i := a.Load(j.at(c)); i < uint64(n) {
			a.Store(int(i), a.Load(j.at(c)+1))
		}
	}
	if k > 0 {
		a.Store(n, 0)
	}
	return j
}

func (j *Journal) at(c int) int { return j.n + 1 + 2*c }

// Load is word i as it was committed.
func (j *Journal) Load(i int) uint64 { return j.a.Load(i) }

// Update makes word i v, at Commit, if it is not that already. It panics where there are too many changes.
func (j *Journal) Update(i int, v uint64) {
	if j.a.Load(i) != v {
		j.Set(i, v)
	}
}

// Set makes word i v, at Commit.
func (j *Journal) Set(i int, v uint64) {
	if len(j.set) == j.most {
		panic("ledger: more changes than the journal has room for")
	}
	at := j.at(len(j.set))
	j.a.Store(at, uint64(i))
	j.a.Store(at+1, v)
	j.set = append(j.set, change{i, v})
}

// Commit does all that was Set.
func (j *Journal) Commit() {
	if len(j.set) == 0 {
		return
	}
	j.a.Store(j.n, uint64(len(j.set)))
	for _, c := range j.set {
		j.a.Store(c.i, c.v)
	}
	j.a.Store(j.n, 0)
	j.set = j.set[:0]
}
