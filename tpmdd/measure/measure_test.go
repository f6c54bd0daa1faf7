package measure

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/tpmdd"
	"github.com/ring3dev/ring3/tpmdd/swtpmtest"
)

var families = []tpmdd.Family{tpmdd.TPM12, tpmdd.TPM20}

// begin makes a Measurer on a fresh TPM.
func begin(t *testing.T, family tpmdd.Family, o Options) (*Measurer, *swtpmtest.TPM) {
	t.Helper()
	tpm := swtpmtest.Start(t, family)
	o.Chip, o.Family = tpm, family
	m, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return m, tpm
}

// replays says whether the list leads to the PCR's value, in every bank that has it.
func replays(t *testing.T, m *Measurer, entries []Entry) bool {
	t.Helper()
	for _, b := range m.banks {
		got, err := m.chip.read(t.Context(), b, m.pcr)
		if err != nil {
			t.Fatal(err)
		}
		want, err := Replay(entries, m.pcr, b)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			return false
		}
	}
	return true
}

// database makes one of contents.
func database(t *testing.T, contents ...string) *Database {
	t.Helper()
	var s strings.Builder
	for _, c := range contents {
		d := sha256.Sum256([]byte(c))
		fmt.Fprintln(&s, Known(d[:], "known"))
	}
	db, err := ReadDatabase(strings.NewReader(s.String()), "known.txt")
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// driver writes a file that stands for a driver.
func driver(t *testing.T, content string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "driver")
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestMeasureReplays(t *testing.T) {
	for _, family := range families {
		t.Run(family.String(), func(t *testing.T) {
			m, _ := begin(t, family, Options{})
			ctx := t.Context()
			f := driver(t, "a driver")
			for range 2 { // the second time nothing is added
				if err := errors.Join(m.File(ctx, "/usr/bin/a driver", f), m.Self(ctx), m.Data(ctx, "config:eth0", []byte("mtu=9000"))); err != nil {
					t.Fatal(err)
				}
			}
			if p, err := m.ReadFile(ctx, f.Name()); err != nil || string(p) != "a driver" {
				t.Errorf("ReadFile = %q, %v, want a driver", p, err)
			}
			entries := m.Log().Entries()
			var names []string
			for _, e := range entries {
				ev, err := e.Event()
				if err := errors.Join(err, e.Check()); err != nil {
					t.Error(err)
				}
				names = append(names, ev.Name)
			}
			exe, _ := os.Readlink("/proc/self/exe")
			if got, want := strings.Join(names, " "), "boot_aggregate /usr/bin/a_driver "+exe+" config:eth0 "+f.Name(); got != want {
				t.Errorf("names = %q, want %q", got, want)
			}
			if !replays(t, m, entries) {
				t.Error("the list does not lead to the PCR's value")
			}
			err := CheckBootAggregate(entries, func(b Bank, n int) []byte {
				v, err := m.chip.read(ctx, b, n)
				if err != nil {
					t.Fatal(err)
				}
				return v
			})
			if err != nil {
				t.Error(err)
			}
			for i := range entries {
				less := append(append([]Entry(nil), entries[:i]...), entries[i+1:]...)
				if replays(t, m, less) {
					t.Errorf("the list without entry %d leads to the PCR's value", i)
				}
			}
		})
	}
}

func TestAllBanks(t *testing.T) {
	m, _ := begin(t, tpmdd.TPM20, Options{})
	if got, want := fmt.Sprint(m.banks), "[sha1 sha256 sha384 sha512]"; got != want {
		t.Logf("banks = %s, often %s", got, want)
	}
	files := m.Log().Files()
	for _, b := range m.banks {
		if files["binary_runtime_measurements_"+b.String()] == nil {
			t.Errorf("no list for bank %s", b)
		}
	}
}

func TestPolicies(t *testing.T) {
	for _, family := range families {
		for _, policy := range []Policy{PolicyLog, PolicyDeny, PolicyLock} {
			t.Run(family.String()+" "+policy.String(), func(t *testing.T) {
				var log bytes.Buffer
				m, _ := begin(t, family, Options{DB: database(t, "a driver"), Policy: policy, Log: slog.New(slog.NewTextHandler(&log, nil))})
				ctx := t.Context()
				if err := m.File(ctx, "driver", driver(t, "a driver")); err != nil {
					t.Fatalf("known: %v", err)
				}
				err := m.File(ctx, "driver", driver(t, "a changed driver"))
				if err != nil && strings.Contains(err.Error()+log.String(), "\n") {
					t.Errorf("changed: %v, log %q: want one line in all", err, log.String())
				}
				if denied := policy != PolicyLog; errors.Is(err, unix.EPERM) != denied || (err != nil) != denied {
					t.Errorf("changed: %v", err)
				}
				changed := sha256.Sum256([]byte("a changed driver"))
				if !strings.Contains(string(m.Log().ASCII()), fmt.Sprintf("sha256:%x driver\n", changed)) {
					t.Error("the list does not have the changed driver")
				}
				if policy == PolicyLog && !strings.Contains(log.String(), "not in the database") {
					t.Errorf("log = %q, want a warning", log.String())
				}
				locked := policy == PolicyLock
				if got := replays(t, m, m.Log().Entries()); got == locked {
					t.Errorf("replays = %v, want %v", got, !locked)
				}
				if got := m.Log().Violations() == 1; got != locked {
					t.Errorf("violations = %d", m.Log().Violations())
				}
				// What is known goes on, but for a lock.
				if err := m.File(ctx, "driver", driver(t, "a driver")); errors.Is(err, unix.EPERM) != locked {
					t.Errorf("known, afterwards: %v", err)
				}
			})
		}
	}
}

func TestNewRefuses(t *testing.T) {
	m, tpm := begin(t, tpmdd.TPM20, Options{})
	for _, c := range []struct {
		pcr  int
		want error
	}{{m.PCR(), bus.ErrBusy}, {9, nil}, {16, nil}, {17, nil}, {22, nil}, {23, nil}, {24, nil}, {-1, nil}} {
		if _, err := New(t.Context(), Options{Chip: tpm, Family: tpm.Family(), PCR: c.pcr}); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("New(PCR %d) = %v, want an error like %v", c.pcr, err, c.want)
		}
	}
	if _, err := New(t.Context(), Options{Chip: tpm, Family: tpm.Family(), PCR: 15}); err != nil {
		t.Errorf("New(PCR 15) = %v", err)
	}
}

func TestCheckPCR(t *testing.T) {
	for pcr, want := range map[int]string{9: "firmware", 10: "", 15: "", 16: "any program can reset", 17: "dynamic launch", 22: "dynamic launch", 23: "any program can reset", 24: "want 10 to 15"} {
		if err := CheckPCR(pcr); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("CheckPCR(%d) = %v, want %q in it", pcr, err, want)
		}
	}
}

// downgraded is a TPM whose SHA-256 bank somebody took away.
type downgraded struct{ tpmdd.Exchanger }

func (d downgraded) Transmit(ctx context.Context, cmd []byte) ([]byte, error) {
	if h, _ := tpmdd.ParseHeader(cmd); h.Code == tpmdd.CCGetCapability {
		return tpmdd.Command(tpmdd.TagNoSessions, 0, 0, 0, 0, 0, tpmdd.CapPCRs, 0, 0, 0, 2, 0, 4, 3, 0xff, 0xff, 0xff, 0, 0xb, 3, 0, 0, 0), nil
	}
	return d.Exchanger.Transmit(ctx, cmd)
}

func TestNewWantsSHA256(t *testing.T) {
	_, err := New(t.Context(), Options{Chip: downgraded{swtpmtest.Start(t, tpmdd.TPM20)}, Family: tpmdd.TPM20})
	const want = "tpm0: PCR 10 has the banks [sha1]: want sha256 among them"
	if !errors.Is(err, bus.ErrNotSupported) || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		t.Errorf("New = %v, want %s", err, want)
	}
}

func TestWhatIsNoFile(t *testing.T) {
	m, _ := begin(t, tpmdd.TPM20, Options{})
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, t.TempDir(), "/dev/zero", "/none"} {
		if _, err := m.ReadFile(t.Context(), path); err == nil {
			t.Errorf("ReadFile(%s): no error", path)
		}
	}
	f, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := m.File(t.Context(), "zero", f); err == nil {
		t.Error("File(/dev/zero): no error")
	}
	if err := m.Data(t.Context(), "x", make([]byte, MaxData+1)); err == nil {
		t.Error("Data of more than MaxData: no error")
	}
	if err := m.Data(t.Context(), "", nil); err == nil {
		t.Error("Data without a name: no error")
	}
	if got := len(m.Log().Entries()); got != 1 {
		t.Errorf("entries = %d, want 1", got)
	}
}

// broken fails from some command on.
type broken struct {
	tpmdd.Exchanger
	fail bool
}

func (b *broken) Transmit(ctx context.Context, cmd []byte) ([]byte, error) {
	if b.fail {
		return nil, bus.ErrTimeout
	}
	return b.Exchanger.Transmit(ctx, cmd)
}

func TestNothingStartsAfterTPMFailure(t *testing.T) {
	b := &broken{Exchanger: swtpmtest.Start(t, tpmdd.TPM20)}
	m, err := New(t.Context(), Options{Chip: b, Family: tpmdd.TPM20})
	if err != nil {
		t.Fatal(err)
	}
	b.fail = true
	if err := m.Data(t.Context(), "a", []byte("a")); !errors.Is(err, bus.ErrTimeout) {
		t.Errorf("Data = %v, want %v", err, bus.ErrTimeout)
	}
	b.fail = false
	// The very same content would be taken for measured.
	if err := m.Data(t.Context(), "a", []byte("a")); !errors.Is(err, bus.ErrTimeout) {
		t.Errorf("Data afterwards = %v, want %v", err, bus.ErrTimeout)
	}
}

func TestConcurrentMeasuring(t *testing.T) {
	m, _ := begin(t, tpmdd.TPM20, Options{})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if err := m.Data(t.Context(), "config", []byte{byte(i / 2)}); err != nil {
				t.Error(err)
			}
			_ = m.Log().ASCII()
		})
	}
	wg.Wait()
	if got := len(m.Log().Entries()); got != 5 {
		t.Errorf("entries = %d, want 5", got)
	}
	if !replays(t, m, m.Log().Entries()) {
		t.Error("the list does not lead to the PCR's value")
	}
}
