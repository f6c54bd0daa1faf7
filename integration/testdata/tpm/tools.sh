#!/bin/sh
# Runs tpm2-tools' daily commands against the resource manager, and some against the TPM itself. One line for each that is done.
set -eu
export TPM2TOOLS_TCTI=device:/dev/tpmrm0
dir=$(mktemp -d) && cd "$dir" && trap 'rm -rf "$dir"' EXIT
step() { echo "ok $1"; }
tpm2_getrandom --hex 16 >random; [ "$(wc -c <random)" = 32 ]; step getrandom
tpm2_pcrread sha256:0,16 -o pcrs >/dev/null; step pcrread
tpm2_pcrextend 16:sha256=b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c
tpm2_pcrread sha256:16 | grep -qv '0x0000000000'; step pcrextend
tpm2_createprimary -Q -C o -g sha256 -G ecc -c primary.ctx; step createprimary
tpm2_create -Q -C primary.ctx -G ecc:ecdsa -u key.pub -r key.priv; step create
tpm2_load -Q -C primary.ctx -u key.pub -r key.priv -c key.ctx; step load
echo message >message
tpm2_sign -Q -c key.ctx -g sha256 -o signature message; step sign
tpm2_verifysignature -Q -c key.ctx -g sha256 -m message -s signature; step verifysignature
echo other >other
if tpm2_verifysignature -Q -c key.ctx -g sha256 -m other -s signature 2>/dev/null; then exit 1; fi; step 'verifysignature, a wrong one'

# A secret that is sealed to a PCR.
tpm2_startauthsession -S session.ctx
tpm2_policypcr -Q -S session.ctx -l sha256:16 -L policy
tpm2_flushcontext session.ctx
printf secret | tpm2_create -Q -C primary.ctx -u seal.pub -r seal.priv -L policy -i-; step seal
tpm2_load -Q -C primary.ctx -u seal.pub -r seal.priv -c seal.ctx
[ "$(tpm2_unseal -c seal.ctx -p pcr:sha256:16)" = secret ]; step unseal
tpm2_pcrextend 16:sha256=b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c
if tpm2_unseal -c seal.ctx -p pcr:sha256:16 >/dev/null 2>&1; then exit 1; fi; step 'unseal, another PCR'

tpm2_nvdefine -Q 0x1500016 -C o -s 32 -a 'ownerread|ownerwrite'; step nvdefine
printf 'please123abc please123abc please' | tpm2_nvwrite -Q 0x1500016 -C o -i-; step nvwrite
tpm2_nvread 0x1500016 -C o -s 9 | grep -q '^please123$'; step nvread
tpm2_nvundefine -Q 0x1500016 -C o

tpm2_createek -Q -c ek.ctx -G rsa -u ek.pub
tpm2_createak -Q -C ek.ctx -c ak.ctx -G rsa -g sha256 -s rsassa -u ak.pub -n ak.name; step createak
tpm2_quote -Q -c ak.ctx -l sha256:0,16 -q abc123 -m quote.msg -s quote.sig -o quote.pcrs -g sha256; step quote
tpm2_checkquote -Q -u ak.pub -m quote.msg -s quote.sig -f quote.pcrs -g sha256 -q abc123; step checkquote
if tpm2_checkquote -Q -u ak.pub -m quote.msg -s quote.sig -f quote.pcrs -g sha256 -q abc124 2>/dev/null; then exit 1; fi; step 'checkquote, another nonce'

# A key moves to another parent.
tpm2_createprimary -Q -C o -g sha256 -G ecc -c new.ctx
tpm2_create -Q -C primary.ctx -g sha256 -G rsa -u np.pub -r np.priv -a 'restricted|decrypt|userwithauth|sensitivedataorigin' -c np.ctx
tpm2_startauthsession -S dup.ctx
tpm2_policycommandcode -Q -S dup.ctx -L dup.policy TPM2_CC_Duplicate
tpm2_flushcontext dup.ctx
tpm2_create -Q -C primary.ctx -g sha256 -G rsa -p foo -r dkey.priv -u dkey.pub -L dup.policy -a 'sensitivedataorigin|userwithauth|decrypt|sign'
tpm2_load -Q -C primary.ctx -r dkey.priv -u dkey.pub -c dkey.ctx
tpm2_startauthsession --policy-session -S dup.ctx
tpm2_policycommandcode -Q -S dup.ctx -L dup.policy TPM2_CC_Duplicate
tpm2_duplicate -Q -C np.ctx -c dkey.ctx -G null -p session:dup.ctx -r dup.priv -s dup.seed; step duplicate
tpm2_flushcontext dup.ctx
tpm2_import -Q -C np.ctx -u dkey.pub -i dup.priv -r imp.priv -s dup.seed -L dup.policy; step import
tpm2_clear -Q; step clear
# What was below the owner's seed is gone.
if tpm2_load -Q -C primary.ctx -u key.pub -r key.priv -c key.ctx 2>/dev/null; then exit 1; fi; step 'load, after clear'
[ -z "$(tpm2_getcap handles-transient)$(tpm2_getcap handles-loaded-session)" ]; step 'nothing is left'
tpm2_getrandom -T device:/dev/tpm0 --hex 8 >/dev/null; step 'getrandom of the TPM itself'
