package mport

import (
	"bytes"
	"net"
	"path/filepath"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// inQEMU is a node's device as QEMU has it, without a guest.
func inQEMU(t *testing.T, path, node string) bus.Device {
	t.Helper()
	c, err := net.Dial("unix", filepath.Join(path+".d", node))
	must(t, err)
	defer c.Close()
	f, err := c.(*net.UnixConn).File()
	must(t, err)
	defer f.Close()
	m, err := qemu.Start(t.Context(), qemu.Config{Devices: []qemu.DeviceSpec{{Name: "rio0", Model: "ivshmem-doorbell", Server: f}}})
	must(t, err)
	t.Cleanup(func() { _ = m.Close() })
	d, err := m.Device("rio0")
	must(t, err)
	return d
}

// The same driver on QEMU's device: it speaks with a node that has none.
func TestQEMU(t *testing.T) {
	bustest.NeedQEMU(t)
	bustest.NoLeaks(t)
	r := &rig{}
	r.path, r.s = serve(t, topology)
	r.p[0] = join(t, r.path, "pe0", ways[0])
	r.p[1] = bind(t, inQEMU(t, r.path, "pe1"), nil)
	r.number(t, 0)
	r.number(t, 1)
	if i := r.p[1].Info(); i.Name != "pe1" || i.Model != "ivshmem" || r.p[1].vectors != 6 {
		t.Errorf("Info = %+v with %d vectors, want pe1 with 6", i, r.p[1].vectors)
	}
	var rec [2]recorder
	var in [2]rapidio.Inbox
	var out [2]rapidio.Outbox
	for i, p := range r.p[:2] {
		p.Start(&rec[i])
		must(t, p.OpenDoorbells(true))
		var err error
		in[i], err = p.OpenInbox(1, 16)
		must(t, err)
		out[i], err = p.OpenOutbox(1, 16)
		must(t, err)
	}
	for i := range 2 {
		must(t, r.p[i].Doorbell(t.Context(), rapidio.DestID(2-i), 0x55))
		other := 1 - i
		eventually(t, "a doorbell", rec[other].has(func(x *recorder) bool { return len(x.bells) == 1 }))
		for round := range 10 {
			var msgs []rapidio.Message
			for k := range 8 {
				msgs = append(msgs, rapidio.Message{Peer: rapidio.DestID(2 - i), Mbox: 1, Data: bytes.Repeat([]byte{byte(round*8 + k)}, 1+k*585)})
			}
			if n := out[i].Add(msgs); n != 8 {
				t.Fatalf("Add = %d, want 8", n)
			}
			for k, m := range receive(t, in[other], 8) {
				if m.Peer != rapidio.DestID(i+1) || !bytes.Equal(m.Data, msgs[k].Data) {
					t.Fatalf("message %d of %d bytes from %d is not what was sent", k, len(m.Data), m.Peer)
				}
			}
			for _, st := range results(t, out[i], 8) {
				if st != rapidio.Done {
					t.Errorf("result %v, want done", st)
				}
			}
		}
	}
	must(t, r.p[1].Close())
	if err := r.p[1].Doorbell(t.Context(), 1, 1); err == nil {
		t.Error("Doorbell of a closed port = nil")
	}
}
