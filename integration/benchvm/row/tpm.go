package row

// TPMCommand is a command of TPM 2.0 whose cost is measured.
type TPMCommand struct {
	Name    string
	Command []byte
}

// TPMCommands are what the rows tpm are about. The register is 16, which is for trying things out.
var TPMCommands = []TPMCommand{
	{"GetRandom(32)", []byte{0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x7b, 0, 32}},
	{"PCR_Read(sha256:16)", []byte{0x80, 0x01, 0, 0, 0, 20, 0, 0, 0x01, 0x7e, 0, 0, 0, 1, 0, 0x0b, 3, 0, 0, 1}},
	{"PCR_Extend(sha256:16)", append([]byte{0x80, 0x02, 0, 0, 0, 65, 0, 0, 0x01, 0x82, 0, 0, 0, 16,
		0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0x0b}, make([]byte, 32)...)},
}

// TPMRounds is how often a command is sent in one measurement.
const TPMRounds = 20
