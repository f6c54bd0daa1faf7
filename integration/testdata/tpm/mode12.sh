#!/bin/sh
# Says which operational mode a TPM 1.2 is in and what it does in that mode, then asks for another.
#
#	mode12.sh [CHANGE...]    CHANGE: enable, disable, activate, deactivate, own, clear
set -eu
sysfs=/sys/class/tpm/tpm0

# tcsd passes on what says that somebody is present only in single user mode, and finds that in utmp: a record
# RUN_LVL ('1', with a time), where only we see it.
mount -t tmpfs none /run
{
	printf '\001\000\000\000\061\000\000\000'
	head -c 332 /dev/zero
	printf '\001\000\000\000'
	head -c 40 /dev/zero
} >/run/utmp
present() { tpm_setpresence --enable-cmd && tpm_setpresence -a; }

# does prints whether the TPM does a thing, and its own error where it does not.
does() {
	what=$1
	shift
	if said=$("$@" </dev/null 2>&1); then
		echo "$what: yes"
	else
		echo "$what: $(echo "$said" | sed -n 's/.*layer=tpm, code=[0-9a-f]* ([0-9]*), //p')"
	fi
}

# size prints the size of a file of sysfs.
size() { printf '%s: %d\n' "$1" "$(wc -c <$sysfs/"$1")"; }

for f in enabled active owned temp_deactivated; do printf '%s ' "$(cat $sysfs/$f)"; done
echo
size pcrs
size pubek
size caps
does version tpm_version
does selftest tpm_selftest
does getpubek tpm_getpubek -z
# Where it would work it would end the mode.
if [ "$(cat $sysfs/enabled)" != 1 ] || [ "$(cat $sysfs/temp_deactivated)" = 1 ] || [ "$(cat $sysfs/owned)" = 1 ]; then
	does takeownership tpm_takeownership -y -z
fi
for change; do
	case $change in
	enable) present; tpm_setenable -e -f ;;
	disable) tpm_setenable -d -z ;; # by the owner
	activate) present; tpm_setactive -a ;;
	deactivate) present; tpm_setactive -i ;;
	own) tpm_takeownership -y -z ;;
	clear) present; tpm_clear -f ;;
	*) echo "mode12.sh: $change" >&2; exit 2 ;;
	esac >&2
done
