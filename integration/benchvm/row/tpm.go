package row

import "github.com/ring3dev/ring3/tpmdd"

// algSHA256 is TPM_ALG_SHA256.
const algSHA256 = 0x000b

// TPMCommand is a command of TPM 2.0 whose cost is measured.
type TPMCommand struct {
	Name    string
	Command []byte
}

// TPMCommands are what the rows tpm are about. The register is 16, which is for trying things out.
var TPMCommands = []TPMCommand{
	{"GetRandom(32)", tpmdd.GetRandom(tpmdd.TPM20, 32)},
	{"PCR_Read(sha256:16)", tpmdd.PCRRead(algSHA256, 16)},
	{"PCR_Extend(sha256:16)", tpmdd.PCRExtend(16, tpmdd.Digest{Alg: algSHA256, Sum: make([]byte, 32)})},
}

// TPMRounds is how often a command is sent in one measurement.
const TPMRounds = 20
