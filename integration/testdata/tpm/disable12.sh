#!/bin/sh
# Disables a TPM 1.2 by physical presence, without tcsd: trousers 0.3.15 sends no TPM_PhysicalDisable for tpm_setenable -d -f,
# but what its buffer held before.
set -eu
exec 3<>/dev/tpm0
# send sends a command, and wants TPM_SUCCESS.
send() {
	# shellcheck disable=SC2059 # escapes are what it is for
	printf "$1" >&3
	[ "$(od -An -tx1 <&3 | tr -d ' \n')" = 00c40000000a00000000 ]
}
send '\000\301\000\000\000\014\100\000\000\012\000\040' # TSC_PhysicalPresence: allow it by command
send '\000\301\000\000\000\014\100\000\000\012\000\010' # TSC_PhysicalPresence: somebody is present
send '\000\301\000\000\000\012\000\000\000\160'         # TPM_PhysicalDisable
[ "$(cat /sys/class/tpm/tpm0/enabled)" = 0 ]
