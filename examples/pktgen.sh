#!/bin/sh
# usage: pktgen.sh [SENDER [RECEIVER_MAC [COUNT]]]
#
# The classic way to drive the kernel's packet generator: echo commands into the files
# below /proc/net/pktgen. Nothing in here knows of ring3; it runs unchanged
#   - on the kernel's pktgen, as root:              examples/pktgen.sh eth1 00:04:23:08:91:dc
#   - on ring3's, as anybody:     ring3 run -- examples/pktgen.sh eth0 52:54:00:12:34:57
# PROC is where /proc is, for a tree that is mounted elsewhere.
set -eu
DEV=${1:-eth0}
DST_MAC=${2:-ff:ff:ff:ff:ff:ff}
COUNT=${3:-100000}
PROC=${PROC:-/proc}

# pgset FILE COMMAND: write a command, and show what it says unless it is OK.
pgset() {
	echo "$2" > "$PROC/net/pktgen/$1"
	grep -q 'Result: OK:' "$PROC/net/pktgen/$1" || grep 'Result:' "$PROC/net/pktgen/$1"
}

pgset kpktgend_0 "rem_device_all"
pgset kpktgend_0 "add_device $DEV"
pgset "$DEV" "count $COUNT"
pgset "$DEV" "clone_skb 0"
pgset "$DEV" "burst 32"
pgset "$DEV" "pkt_size 60"
pgset "$DEV" "delay 0"
pgset "$DEV" "dst 10.0.0.2"
pgset "$DEV" "dst_mac $DST_MAC"

echo "Running... ctrl^C to stop"
echo start > "$PROC/net/pktgen/pgctrl"
echo "Done"
