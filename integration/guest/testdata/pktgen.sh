#!/bin/bash
# Runs pktgen through the cases of a file by echo, and prints what there is to read.
#
#	pktgen.sh DIR CASES    DIR is /proc/net/pktgen, CASES a file; pktgen.txt tells what it has
set -u
cd "$1" || exit
thread=kpktgend_0 control=pgctrl device=

said=$(mktemp)
trap 'rm -f "$said"' EXIT

# told COMMAND prints it, and what the shell said of its write.
told() {
	local text=
	if [ -s "$said" ]; then
		text=$(<"$said")
		: >"$said"
	fi
	printf '> %s\n' "$1${text:+ = ${text##*: }}"
}

# result FILE prints its Result, which may have several lines.
result() {
	local line lines found=
	mapfile -t lines <"$1"
	for line in "${lines[@]}"; do
		[[ $line == Result:* ]] && found=1
		[ -n "$found" ] && printf '  %s\n' "$line"
	done
}

# devices sets files to those of the devices. ring3 has more, NAME.rx, which the kernel has not.
devices() {
	local file
	files=()
	for file in eth0*; do
		[[ $file != *.rx && -e $file ]] && files+=("$file")
	done
}

# show FILE... prints files.
show() {
	local file lines
	for file; do
		mapfile -t lines <"$file" && printf '%s\n' "${lines[@]}"
	done
}

# state sets started and ended: when the device's last run began, and whether it is over.
state() {
	local line lines
	started='' ended=''
	mapfile -t lines <"$device"
	for line in "${lines[@]}"; do
		case $line in
		'     started: '*) started=${line%%us *} ;;
		'Result: OK: '*' usec, '* | 'Result: ERROR: '*) ended=1 ;;
		esac
	done
}

# until_ended BEFORE waits for the end of the run after the one that began then. The kernel's start
# returns too early on a slow machine.
until_ended() {
	local running
	for _ in {1..200}; do
		read -r running <"$thread"
		state
		[ "$running" = Running: ] && [ -n "$ended" ] && [ "$started" != "$1" ] && return
		sleep 0.02
	done
	echo "the run did not end"
}

# until_gone waits until there is no device, likewise.
until_gone() {
	for _ in {1..200}; do
		devices
		[ ${#files[@]} != 0 ] || return
		sleep 0.02
	done
	echo "the devices did not go"
}

# begin makes a new device for a case.
begin() {
	device=eth0
	echo rem_device_all >"$thread"
	until_gone
	echo 'add_device eth0' >"$thread"
	echo 'flag NO_TIMESTAMP' >"$device"
	echo 'count 3' >"$device"
	echo 'dst_mac 52:54:00:12:34:57' >"$device"
}

# start runs all devices.
start() {
	state
	local before=$started
	{ echo start >"$control"; } 2>"$said"
	until_ended "$before"
	told start
	devices
	show "${files[@]}"
}

while IFS= read -r line; do
	text=${line#* }
	case $line in
	'' | '#'*) ;;
	==*) printf '%s\n' "$line" && begin ;;
	'show '*) told "$line" && show "$text" ;;
	'device '*) device=$text ;;
	list) told "$line" && stat -c '%A %n' -- * | grep -v 'kpktgend_[1-9]\|\.rx$' ;;
	start) start ;;
	'control '*) { echo "$text" >"$control"; } 2>"$said"; told "$line" ;;
	'control-raw '*) { printf %b "$text" >"$control"; } 2>"$said"; told "$line" ;;
	'thread '*) { echo "$text" >"$thread"; } 2>"$said"; told "$line" && result "$thread" ;;
	'raw '*) { printf %b "$text" >"$device"; } 2>"$said"; told "$line" && result "$device" ;;
	*) { echo "$line" >"$device"; } 2>"$said"; told "$line" && result "$device" ;;
	esac
	case $line in 'control reset' | 'thread rem_device_all'*) until_gone ;; esac
done <"$2"
echo rem_device_all >"$thread"
