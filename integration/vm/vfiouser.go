package vm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// Served is a device that another process serves at a Unix socket, over vfio-user.
type Served struct {
	ID     string // QEMU's, by which Address finds it
	Socket string // an absolute path: QEMU runs in a folder of its own
}

// VFIOUser gives the VM served devices, in the slots from 4 on, and a QEMU that can do it: the machine's own, or
// one that is fetched the first time (hack/qemu); an error says why there is none. The VM's memory is a file
// then, which servers can map, and there is no virtual IOMMU. Only for amd64.
func (c *Config) VFIOUser(devices ...Served) error {
	if arch := orHost(c.Arch); arch != "amd64" {
		return fmt.Errorf("vm: vfio-user: the QEMU that is fetched is one for amd64, and the VM is %s", arch)
	}
	top, err := top()
	if err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(top, "hack/qemu"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("vm: no QEMU with vfio-user-pci (10.1 or later) here: %w\n%s", err, stderr.String())
	}
	c.QEMU, c.NoIOMMU = strings.TrimSpace(string(out)), true
	*c = c.withDefaults()
	c.Devices = append(c.Devices,
		"-object", fmt.Sprintf("memory-backend-memfd,id=ram0,size=%dM,share=on", c.MemoryMB), "-machine", "memory-backend=ram0")
	for i, d := range devices {
		arg, err := json.Marshal(map[string]any{
			"driver": "vfio-user-pci", "id": d.ID, "addr": fmt.Sprintf("%x", 4+i),
			"socket": map[string]string{"type": "unix", "path": d.Socket},
		})
		if err != nil {
			return fmt.Errorf("vm: vfio-user: %w", err)
		}
		c.Devices = append(c.Devices, "-device", string(arg))
	}
	return nil
}
