#!/bin/sh
# An SSH key in the TPM, behind PKCS#11. One line for each step.
set -eu
lib=$1 # libtpm2_pkcs11.so
dir=$(mktemp -d) && cd "$dir"
trap 'ssh-agent -k >/dev/null 2>&1 || true; rm -rf "$dir"' EXIT
export HOME="$dir" TPM2_PKCS11_STORE="$dir/store" TPM2_PKCS11_TCTI=device:/dev/tpmrm0 TPM2TOOLS_TCTI=device:/dev/tpmrm0 TPM2_PKCS11_LOG_LEVEL=0
mkdir store
step() { echo "ok $1"; }
lib=$(realpath "$lib") # ssh-agent compares that
# The parent of all tokens; a key of RSA takes the emulator up to 20 s.
tpm2_createprimary -Q -G ecc -c primary.ctx
tpm2_evictcontrol -Q -c primary.ctx 0x81000001
tpm2_ptool init --primary-handle=0x81000001 >/dev/null
tpm2_ptool addtoken --pid=1 --label=ssh --userpin=1234 --sopin=5678 >/dev/null; step 'init, addtoken'
tpm2_ptool addkey --label=ssh --userpin=1234 --algorithm=ecc256 >/dev/null; step addkey
ssh-keygen -D "$lib" >key.pub
grep -q '^ecdsa-sha2-nistp256 ' key.pub; step 'ssh-keygen -D'

# The agent asks for the PIN through a program.
printf '#!/bin/sh\necho 1234\n' >pin
chmod +x pin
eval "$(ssh-agent -a "$dir/agent" -P "$lib")" >/dev/null
SSH_ASKPASS="$dir/pin" SSH_ASKPASS_REQUIRE=force ssh-add -s "$lib" >/dev/null 2>&1; step ssh-add
echo message >message
ssh-keygen -Y sign -f key.pub -n file message 2>/dev/null; step 'ssh-keygen -Y sign'
echo "me $(cut -d' ' -f1,2 key.pub)" >allowed
ssh-keygen -Y verify -f allowed -I me -n file -s message.sig <message >/dev/null; step 'ssh-keygen -Y verify'
echo other >other
if ssh-keygen -Y verify -f allowed -I me -n file -s message.sig <other >/dev/null 2>&1; then exit 1; fi; step 'ssh-keygen -Y verify, another message'
ssh-agent -k >/dev/null

pkcs11-tool --module "$lib" --sign --login --pin 1234 -m ECDSA-SHA256 -i message -o signature --signature-format openssl >/dev/null 2>&1
ssh-keygen -e -m PKCS8 -f key.pub >key.pem
openssl dgst -sha256 -verify key.pem -signature signature message >/dev/null; step 'pkcs11-tool --sign, openssl'
if pkcs11-tool --module "$lib" --sign --login --pin 4321 -m ECDSA-SHA256 -i message -o signature >/dev/null 2>&1; then exit 1; fi; step 'pkcs11-tool, a wrong PIN'
[ -z "$(tpm2_getcap handles-transient)$(tpm2_getcap handles-loaded-session)$(tpm2_getcap handles-saved-session)" ]; step 'nothing is left'
