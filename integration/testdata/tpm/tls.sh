#!/bin/sh
# A TLS server whose key is in the TPM (tpm2-openssl). One line for each step.
set -eu
port=$1
dir=$(mktemp -d) && cd "$dir"
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$dir"' EXIT
export TPM2OPENSSL_TCTI=device:/dev/tpmrm0
step() { echo "ok $1"; }
openssl genpkey -provider tpm2 -algorithm EC -pkeyopt group:P-256 -out key.pem 2>/dev/null
grep -q 'BEGIN TSS2 PRIVATE KEY' key.pem; step genpkey

# tpm does with the TPM what needs the key, and nothing else: a handshake's digests would not fit beside it into the three
# objects that a TPM holds, which is so with the kernel's resource manager too.
tpm() {
	command=$1
	shift
	set -- openssl "$command" -provider default -provider tpm2 -propquery '?provider=tpm2,tpm2.digest!=yes' "$@"
	if [ "$command" = s_server ]; then exec "$@"; fi # $! is to be the server
	"$@"
}
tpm req -x509 -key key.pem -subj /CN=localhost -days 1 -out cert.pem; step req
tpm s_server -accept "localhost:$port" -www -key key.pem -cert cert.pem >server.out 2>&1 &
server=$!
for _ in $(seq 100); do
	grep -q ACCEPT server.out && break
	sleep 0.05
done
for _ in 1 2 3; do
	echo Q | timeout 20 openssl s_client -connect "localhost:$port" -CAfile cert.pem -verify_return_error >client.out 2>&1 || { cat client.out server.out; exit 1; }
	grep -q '^Verification: OK$' client.out
	openssl x509 -in client.out -outform der -out theirs
	openssl x509 -in cert.pem -outform der -out ours
	cmp theirs ours
done
step handshakes
kill "$server"
wait "$server" || true
server=
[ -z "$(tpm2_getcap -T device:/dev/tpmrm0 handles-transient)" ]; step 'nothing is left'
