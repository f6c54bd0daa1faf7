package hwbind

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/syspci"
)

// ErrInUse is wrapped where something uses a function and nobody said to take it.
var ErrInUse = errors.New("in use")

// Request says what to bind to what.
type Request struct {
	Addrs    []pci.Addr
	Driver   string // VFIO or UIO
	Owner    *Owner // who gets the nodes; nil leaves them root's
	Takeover bool   // also functions that are in use
}

// Result is what became of one function.
type Result struct {
	Address string   `json:"address"`
	Was     string   `json:"was"`    // driver before, "" for none
	Driver  string   `json:"driver"` // driver now, "" for none
	Group   int      `json:"group"`  // its IOMMU group, -1 for none
	Nodes   []string `json:"nodes"`
	Owner   string   `json:"owner,omitempty"` // of the nodes; "" is root
	Took    []string `json:"took,omitempty"`  // what used it
	Notes   []string `json:"notes,omitempty"`
}

// Plan is what is going to be done, looked at and allowed.
type Plan struct {
	m       *Machine
	targets []*target
	load    []string // modules to load first
	owner   *Owner
}

// target is one function of a plan.
type target struct {
	f       *syspci.Function // as it was
	owners  map[string]int   // who owned its nodes, with the driver of before and the one to come
	was     *remembered      // from an earlier binding; nil for none
	to      string           // the driver that it gets, "" for none
	took    []string         // what used it
	restore bool             // unbind
	begun   bool             // something may have changed
}

// PlanBind looks whether functions may be bound, and says how.
func (m *Machine) PlanBind(r Request) (*Plan, error) {
	p := &Plan{m: m, owner: r.Owner}
	for _, a := range r.Addrs {
		f, err := m.Sys.Function(a)
		if err != nil {
			return nil, err
		}
		t := &target{f: f, to: r.Driver, was: m.recall(a), owners: m.owners(f, f.Driver, r.Driver)}
		p.targets = append(p.targets, t)
	}
	for _, t := range p.targets {
		if err := m.mayBind(p, t, r); err != nil {
			return nil, err
		}
	}
	if !m.hasDriver(r.Driver) {
		p.load = append(p.load, r.Driver)
	}
	if _, err := os.Stat(filepath.Join(string(m.Sys), "module", type1)); err != nil && r.Driver == VFIO {
		p.load = append(p.load, type1)
	}
	return p, nil
}

// type1 is what VFIO needs besides, unless the kernel has iommufd alone. Where modprobe knows
// of soft dependencies it comes along with vfio-pci.
const type1 = "vfio_iommu_type1"

// mayBind refuses what must not be bound.
func (m *Machine) mayBind(p *Plan, t *target, r Request) error {
	if r.Driver == VFIO {
		if err := m.mayVFIO(p, t.f, r); err != nil {
			return err
		}
	}
	var uses []string
	if t.f.Driver != r.Driver { // else it has it already; only the nodes may change hands
		uses = m.Uses(t.f)
	}
	uses = append(uses, m.others(t, r)...)
	if len(uses) > 0 && !r.Takeover {
		return fmt.Errorf("%s: binding: %w: %s; --takeover takes it away all the same", t.f.Addr, ErrInUse, strings.Join(uses, "; "))
	}
	t.took = uses
	return nil
}

// owners are who owns the nodes that a function has with these drivers.
func (m *Machine) owners(f *syspci.Function, drivers ...string) map[string]int {
	out := map[string]int{}
	for _, d := range drivers {
		for _, n := range m.nodesWith(f, d) {
			out[n] = m.Ops.OwnerOf(n)
		}
	}
	return out
}

// others says whose nodes would change hands: another user's, who may have them open. A group's node
// is that of all its members.
func (m *Machine) others(t *target, r Request) []string {
	if r.Owner == nil {
		return nil
	}
	var out, nodes []string
	for _, n := range m.nodesWith(t.f, r.Driver) {
		uid := t.owners[n]
		if uid == 0 || uid == r.Owner.UID {
			continue
		}
		nodes = append(nodes, n)
		if t.f.Driver != r.Driver { // else this function's owner is to change, and that is what was asked for
			out = append(out, fmt.Sprintf("%s is %s's", n, userName(uid)))
		}
	}
	return append(out, m.opened(nodes)...)
}

// mayVFIO refuses what vfio-pci, or later the kernel's VFIO, would.
func (m *Machine) mayVFIO(p *Plan, f *syspci.Function, r Request) error {
	if f.Bridge {
		return fmt.Errorf("%s: binding: %s takes no bridges, and it is one: %w; --driver %s takes it", f.Addr, VFIO, bus.ErrNotSupported, UIO)
	}
	g, err := m.group(f)
	if err != nil {
		return fmt.Errorf("%s: binding: %w", f.Addr, err)
	}
	if g == nil {
		if m.noIOMMU() {
			return nil // the administrator asked for it
		}
		return fmt.Errorf("%s: binding: %w: %s; or --driver %s, without protection", f.Addr, bus.ErrNoIOMMU, m.IOMMURemedy(), UIO)
	}
	var left []string
	all := slices.Clone(r.Addrs)
	for _, h := range g.holders() {
		if !slices.ContainsFunc(p.targets, func(t *target) bool { return t.f.Addr == h.Addr }) {
			left = append(left, h.String())
			all = append(all, h.Addr)
		}
	}
	if len(left) == 0 {
		return nil
	}
	slices.SortFunc(all, compare)
	return fmt.Errorf("%s: binding: IOMMU group %d changes hands as a whole, and %s would stay with the kernel; all of it: %s: %w",
		f.Addr, g.ID, strings.Join(left, ", "), BindCommand(all, VFIO, r.Owner), bus.ErrBusy)
}

// BindCommand is what a user types.
func BindCommand(list []pci.Addr, driver string, o *Owner) string {
	s := "sudo ring3 bind " + addrs(list) + " --driver " + driver
	if o != nil {
		s += " --owner " + o.Name
	}
	return s
}

func compare(a, b pci.Addr) int {
	switch {
	case a.Less(b):
		return -1
	case b.Less(a):
		return 1
	}
	return 0
}

// Took says what the plan takes functions away from, a line for each.
func (p *Plan) Took() []string {
	var out []string
	for _, t := range p.targets {
		for _, u := range t.took {
			out = append(out, t.f.Addr.String()+": "+u)
		}
	}
	return out
}

// Steps says in shell what Run does.
func (p *Plan) Steps() []string {
	var out []string
	for _, module := range p.load {
		out = append(out, "modprobe "+module)
	}
	for _, t := range p.targets {
		if t.restore {
			out = append(out, p.m.unbindSteps(t)...)
		} else {
			out = append(out, p.bindSteps(t)...)
		}
	}
	return out
}

func (p *Plan) bindSteps(t *target) []string {
	m, a := p.m, t.f.Addr
	var out []string
	if t.f.Driver != t.to {
		if t.f.Override != t.to {
			out = append(out, "echo "+t.to+" > "+m.Sys.Path(a, "driver_override"))
		}
		if t.f.Driver != "" {
			out = append(out, "echo "+a.String()+" > "+m.driver(t.f.Driver, "unbind"))
		}
		out = append(out, "echo "+a.String()+" > "+m.driver(t.to, "bind"))
	}
	if p.owner == nil {
		return out
	}
	nodes := m.Nodes(t.f)
	switch {
	case t.f.Driver == t.to && len(nodes) > 0:
	case t.to == UIO:
		nodes = []string{m.Dev + "/uioN, of the number that the kernel gives it"}
	case t.f.Group == syspci.NoGroup:
		nodes = []string{m.Dev + "/vfio/noiommu-N, of the number that the kernel gives it"}
	default:
		nodes = []string{fmt.Sprintf("%s/vfio/%d", m.Dev, t.f.Group)}
	}
	for _, n := range nodes {
		out = append(out, "chown "+p.owner.Name+" "+n)
	}
	return out
}

// Run does it. On an error every function has the driver that it had before; what could not
// be put back, the error names.
func (p *Plan) Run(ctx context.Context) ([]Result, error) {
	for _, module := range p.load {
		if err := p.m.Ops.Modprobe(ctx, module); err != nil && module != type1 {
			return nil, fmt.Errorf("%s: loading the module %s: %w; is the kernel's modules package installed?", p.targets[0].f.Addr, module, err)
		}
	}
	var out []Result
	for i, t := range p.targets {
		r, err := p.run(ctx, t)
		if err != nil {
			for _, done := range slices.Backward(p.targets[:i+1]) {
				if !done.begun {
					continue
				}
				err = errors.Join(err, p.m.putBack(done))
				if len(done.took) > 0 {
					err = errors.Join(err, fmt.Errorf("%s: what used it is to be set up anew: %s", done.f.Addr, strings.Join(done.took, "; ")))
				}
			}
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

func (p *Plan) run(ctx context.Context, t *target) (Result, error) {
	if t.restore {
		return p.m.unbind(ctx, t)
	}
	return p.bind(ctx, t)
}

// bind binds one function.
func (p *Plan) bind(ctx context.Context, t *target) (Result, error) {
	m, a := p.m, t.f.Addr
	r := Result{Address: a.String(), Was: t.f.Driver, Driver: t.to, Took: t.took}
	now := remembered{Address: a.String(), Was: t.f.Driver, Override: t.f.Override}
	if t.was != nil && t.was.Bound == t.f.Driver {
		now = *t.was // bound before: what was before that counts
	}
	now.Bound, now.Owner = t.to, p.owner
	known := t.was != nil || t.f.Driver != t.to // else somebody else bound it, and how it was we cannot know
	t.begun = true
	if known {
		if err := m.remember(a, now); err != nil {
			return r, err
		}
	}
	if t.f.Driver != t.to {
		if err := m.move(a, t.f, t.to); err != nil {
			return r, err
		}
	}
	return m.handOver(ctx, p, a, r)
}

// move takes a function from the driver that it has to another.
func (m *Machine) move(a pci.Addr, f *syspci.Function, to string) error {
	if f.Override != to {
		if err := m.override(a, to); err != nil {
			return fmt.Errorf("%s: binding: setting driver_override to %s: %w", a, to, err)
		}
	}
	if f.Driver != "" {
		if err := m.Ops.Write(m.driver(f.Driver, "unbind"), a.String()); err != nil {
			return fmt.Errorf("%s: binding: taking it from %s: %w", a, f.Driver, err)
		}
	}
	if err := m.Ops.Write(m.driver(to, "bind"), a.String()); err != nil {
		return fmt.Errorf("%s: binding: %s refuses it: %w; the kernel's log may say more (sudo dmesg)", a, to, err)
	}
	now, err := m.Sys.Function(a)
	if err != nil {
		return fmt.Errorf("%s: binding: %w", a, err)
	}
	if now.Driver != to {
		return fmt.Errorf("%s: binding: it is with driver %q, want %s: %w", a, now.Driver, to, bus.ErrProtocol)
	}
	return nil
}

// handOver gives the nodes of a bound function to their owner.
func (m *Machine) handOver(ctx context.Context, p *Plan, a pci.Addr, r Result) (Result, error) {
	m.Ops.Settle(ctx)
	if err := ctx.Err(); err != nil {
		return r, fmt.Errorf("%s: binding: %w", a, err)
	}
	now, err := m.Sys.Function(a)
	if err != nil {
		return r, fmt.Errorf("%s: binding: %w", a, err)
	}
	r.Group, r.Nodes = now.Group, m.Nodes(now)
	if len(r.Nodes) == 0 {
		return r, fmt.Errorf("%s: binding: %s has it, but there is no device node of it in %s; is it a container's?: %w", a, now.Driver, m.Dev, bus.ErrNotSupported)
	}
	if p.owner != nil {
		for _, n := range r.Nodes {
			if err := m.Ops.Chown(n, p.owner.UID, -1); err != nil {
				return r, fmt.Errorf("%s: binding: giving %s to %s: %w", a, n, p.owner, err)
			}
		}
		r.Owner = p.owner.Name
	}
	r.Notes = m.notes(now, p.owner)
	return r, nil
}

// notes are what a user should know of a function that was bound.
func (m *Machine) notes(f *syspci.Function, o *Owner) []string {
	var out []string
	switch {
	case f.Driver == UIO:
		out = append(out, "the kernel shows all of config space to root alone: sudo ring3 up --as USER NAME=uio:"+f.Addr.String())
		if o != nil {
			out = append(out, fmt.Sprintf("%s can map registers of it, and nothing confines its DMA: whoever reaches a device that does DMA reaches all memory", o))
		}
	case m.isNoIOMMU(f):
		out = append(out, "there is no IOMMU: its DMA reaches all memory, and opening it takes root")
	case o == nil:
		out = append(out, "only root may open it; --owner USER gives it to a user")
	}
	return out
}

// isNoIOMMU says whether a function that VFIO has is not confined.
func (m *Machine) isNoIOMMU(f *syspci.Function) bool {
	return f.Driver == VFIO && f.Group != syspci.NoGroup &&
		text(string(m.Sys), "kernel/iommu_groups", fmt.Sprint(f.Group), "name") == "vfio-noiommu"
}
