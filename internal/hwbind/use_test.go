package hwbind

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/ring3dev/ring3/bus/pci"
)

// block adds a block device below a device's place, or a virtual one.
func (k *model) block(place, number string, holders ...string) {
	name := filepath.Base(place)
	k.file(place+"/dev", number+"\n")
	k.link("sys/class/block/"+name, place)
	k.file("dev/"+name, "")
	for _, h := range holders {
		k.link(place+"/holders/"+h, "sys/devices/virtual/block/"+h)
	}
}

const classStorage = 0x010802

func TestUses(t *testing.T) {
	const nic, disk = "0000:00:03.0", "0000:00:02.0"
	for name, c := range map[string]struct {
		make func(k *model)
		of   string
		want []string
	}{
		"nothing": {func(*model) {}, nic, nil},
		"an interface that is down, with another that is up elsewhere": {func(k *model) {
			k.addNet(nic+"/net/eth0", false)
			k.addNet("0000:00:09.0/net/eth9", true)
		}, nic, nil},
		"behind virtio": {func(k *model) { k.addNet(nic+"/virtio1/net/eth0", true) }, nic, []string{"interface eth0 is up"}},
		"the default route": {func(k *model) {
			k.addNet(nic+"/net/eth0", true)
			k.file("proc/net/route", "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"+
				"eth0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\nbroken\n")
		}, nic, []string{"interface eth0 is up and has the default route"}},
		"the default route of IPv6": {func(k *model) {
			k.addNet(nic+"/net/eth0", true)
			zero := "00000000000000000000000000000000"
			k.file("proc/net/ipv6_route", zero+" 00 "+zero+" 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 eth0\n"+
				zero+" 00 "+zero+" 00 "+zero+" ffffffff 00000001 00000000 00200200 lo\n")
		}, nic, []string{"interface eth0 is up and has the default route"}},
		"in a bridge": {func(k *model) {
			k.addNet(nic+"/net/eth0", true)
			k.link(root+nic+"/net/eth0/upper_bond0", "sys/devices/virtual/net/bond0")
			k.link("sys/class/net/bond0/upper_br0", "sys/devices/virtual/net/br0")
			k.file("proc/net/route", "br0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n")
		}, nic, []string{"interface eth0 is up, bond0 stands on it, br0 stands on it and has the default route"}},
		"behind a port": {func(k *model) { k.addNet("0000:00:1c.0/0000:03:00.0/net/eth3", true) }, "0000:00:1c.0", []string{"interface eth3 is up"}},
		"in another namespace": {func(k *model) { k.link(root+nic+"/driver", "sys/bus/pci/drivers/e1000e") }, nic,
			[]string{"driver e1000e has no network interface in sight, so it may be in another network namespace (a container)"}},
		"virtual functions": {func(k *model) { k.file(root+nic+"/sriov_numvfs", "4\n") }, nic, []string{"it has 4 virtual functions, which would go with it"}},
		"a mounted partition": {func(k *model) {
			k.block(root+disk+"/virtio0/block/vda", "254:0")
			k.block(root+disk+"/virtio0/block/vda/vda1", "254:1")
			k.block("sys/devices/virtual/block/loop0", "7:0")
			k.file("proc/self/mountinfo", "22 1 254:1 / / rw shared:1 - ext4 /dev/vda1 rw\n23 1 254:1 /x /srv\\040x rw - ext4 /dev/vda1 rw\n24 1 7:0 / /l rw - ext4 /dev/loop0 rw\n")
		}, disk, []string{"vda1 is mounted at /, /srv x"}},
		"btrfs, by its source": {func(k *model) {
			k.block(root+disk+"/block/sda", "8:0")
			k.file("proc/self/mountinfo", "22 1 0:35 / /home rw - btrfs /dev/sda rw\n")
		}, disk, []string{"sda is mounted at /home"}},
		"btrfs, a further device": {func(k *model) {
			k.block(root+disk+"/block/sdb", "8:16")
			k.link("sys/fs/btrfs/1b2c/devices/sdb", root+disk+"/block/sdb")
		}, disk, []string{"sdb is mounted at a btrfs of several devices"}},
		"volumes": {func(k *model) {
			k.block(root+disk+"/block/sda", "8:0")
			k.block(root+disk+"/block/sda/sda2", "8:2", "md0")
			k.block("sys/devices/virtual/block/md0", "9:0", "dm-0", "dm-1")
			k.block("sys/devices/virtual/block/dm-0", "253:0")
			k.block("sys/devices/virtual/block/dm-1", "253:1")
			k.file("sys/devices/virtual/block/dm-0/dm/name", "vg-root\n")
			k.link("dev/mapper/vg-swap", "dev/dm-1")
			k.file("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n/dev/mapper/vg-swap partition 100 0 -2\n/swapfile file 100 0 -3\n")
			k.file("proc/self/mountinfo", "22 1 253:0 / / rw shared:1 - ext4 /dev/mapper/vg-root rw\n")
		}, disk, []string{"sda2 holds md0, which holds dm-0 (vg-root), which is mounted at /", "sda2 holds md0, which holds dm-1, which is swap"}},
		"nvme beside its controller": {func(k *model) {
			k.mkdir(root + disk + "/nvme/nvme0")
			k.block("sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1", "259:0")
			k.link("sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0", root+disk+"/nvme/nvme0")
			k.link("sys/class/nvme-subsystem/nvme-subsys0", "sys/devices/virtual/nvme-subsystem/nvme-subsys0")
			k.file("proc/self/mountinfo", "22 1 259:0 / / rw - xfs /dev/nvme0n1 rw\n")
		}, disk, []string{"nvme0n1 is mounted at /"}},
		"claimed by who knows": {func(k *model) {
			k.block(root+disk+"/block/sda", "8:0")
			k.file("dev/sda.claimed", "")
		}, disk, []string{"sda is in use by a file system, a volume manager or a program"}},
		"a loop of holders": {func(k *model) {
			k.block(root+disk+"/block/sda", "8:0", "dm-0")
			k.block("sys/devices/virtual/block/dm-0", "253:0", "dm-0")
		}, disk, nil},
	} {
		t.Run(name, func(t *testing.T) {
			k := newModel(t)
			k.add(nic, classEthernet, "", 3)
			k.add(disk, classStorage, "", 2)
			k.add("0000:00:1c.0", classPort, "pcieport", 4)
			k.file("sys/class/net/bonding_masters", "\n")
			c.make(k)
			a, _ := pci.ParseAddr(c.of)
			f, err := k.m.Sys.Function(a)
			if err != nil {
				t.Fatal(err)
			}
			if got := k.m.Uses(f); !reflect.DeepEqual(got, c.want) {
				t.Errorf("uses %q, want %q", got, c.want)
			}
		})
	}
}

// A function at a driver for user space is in use where somebody has its node open.
func TestOpenBy(t *testing.T) {
	k, a := withNIC(t)
	if _, _, err := k.fullBind(Request{Addrs: []pci.Addr{a}, Driver: UIO}); err != nil {
		t.Fatal(err)
	}
	k.file("proc/77/comm", "ring3\n")
	k.link("proc/77/fd/9", "dev/uio4")
	if err := os.Symlink("socket:[1]", filepath.Join(k.dir, "proc/77/fd/1")); err != nil {
		t.Fatal(err)
	}
	f, err := k.m.Sys.Function(a)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := k.m.Uses(f), []string{"process 77 (ring3) has " + k.dir + "/dev/uio4 open"}; !reflect.DeepEqual(got, want) {
		t.Errorf("uses %q, want %q", got, want)
	}
}
