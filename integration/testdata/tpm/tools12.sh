#!/bin/sh
# Runs the programs of TPM 1.2 (tpm-tools, through tcsd). One line for each that is done.
#
#	tools12.sh DIR          take ownership, seal, in DIR
#	tools12.sh DIR again    what is left of that after a reset
set -eu
cd "$1"
step() { echo "ok $1"; }
sysfs=/sys/class/tpm/tpm0

# The key as sysfs and as tpm_getpubek write it.
ek_sysfs() { sed '1,/^Modulus:/d' $sysfs/pubek | tr -d ' \n'; }
ek_tool() { tpm_getpubek "$@" | sed '1,/Public Key:/d' | tr -d ' \t\n'; }

if [ $# -gt 1 ]; then
	[ "$(cat $sysfs/owned)" = 1 ]; step 'still owned'
	[ "$(ek_tool -z)" = "$(cat ek)" ]; step 'the same endorsement key'
	[ "$(tpm_unsealdata -z -i sealed)" = secret ]; step unsealdata
	tpm_nvread -i 1 -s 5 -z | grep -q 'hello *$'; step nvread
	tpm_nvrelease -i 1 -y >/dev/null
	if tpm_nvinfo | grep -q 'index *: 0x00000001'; then exit 1; fi; step nvrelease
	exit
fi

tpm_version | grep -q 'Chip Version: *1\.2\.'; step version
tpm_selftest | grep -q 'TPM Test Results: '; step selftest
[ "$(cat $sysfs/owned)" = 0 ]
ek_tool >ek
[ "$(wc -c <ek)" = 512 ]; [ "$(ek_sysfs)" = "$(cat ek)" ]; step getpubek
tpm_takeownership -y -z; [ "$(cat $sysfs/owned)" = 1 ]; step takeownership
if tpm_takeownership -y -z 2>/dev/null; then exit 1; fi; step 'takeownership, a second time'
# From now on it is the owner's to read.
if tpm_getpubek </dev/null >/dev/null 2>&1; then exit 1; fi
[ -z "$(cat $sysfs/pubek)" ]
[ "$(ek_tool -z)" = "$(cat ek)" ]; step 'getpubek, by the owner'
tpm_setownable -s -z | grep -q 'Ownable status: true'; step setownable
tpm_setclearable -s -z | grep -q 'Owner Clear Disabled: false'; step setclearable
tpm_restrictsrk -s -z | grep -q 'Storage Root Key readable'; step restrictsrk
tpm_resetdalock -z; step resetdalock

echo secret >plain
tpm_sealdata -z -i plain -o sealed
[ "$(tpm_unsealdata -z -i sealed)" = secret ]; step 'sealdata, unsealdata'
tpm_sealdata -z -p 16 -i plain -o sealed16
[ "$(tpm_unsealdata -z -i sealed16)" = secret ]; step 'unsealdata, of a PCR'

tpm_nvdefine -i 1 -s 16 -p 'OWNERREAD|OWNERWRITE' -y >/dev/null; step nvdefine
tpm_nvwrite -i 1 -z -d hello >/dev/null; step nvwrite
