module example.com/testdev

go 1.25.0

require github.com/ring3dev/ring3 v0.0.0

require (
	github.com/expr-lang/expr v1.17.8 // indirect
	github.com/google/gopacket v1.1.19 // indirect
	github.com/hanwen/go-fuse/v2 v2.12.1 // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/spf13/cobra v1.10.2 // indirect
	github.com/spf13/pflag v1.0.9 // indirect
	github.com/u-root/u-root v0.15.0 // indirect
	github.com/vishvananda/netlink v1.3.1 // indirect
	github.com/vishvananda/netns v0.0.5 // indirect
	golang.org/x/net v0.38.0 // indirect
	golang.org/x/sys v0.38.0 // indirect
)

replace github.com/ring3dev/ring3 => ../..
