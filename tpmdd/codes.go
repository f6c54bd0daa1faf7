package tpmdd

// Command codes of TPM 2.0 (part 2, 6.5.2) that this tree sends or must know.
const (
	CCFirst                 = 0x11f
	CCHierarchyControl      = 0x121
	CCHierarchyChangeAuth   = 0x129
	CCPCRAllocate           = 0x12b
	CCPCRSetAuthPolicy      = 0x12c
	CCCreatePrimary         = 0x131
	CCPCREvent              = 0x13c
	CCPCRReset              = 0x13d
	CCSequenceComplete      = 0x13e
	CCSelfTest              = 0x143
	CCStartup               = 0x144
	CCShutdown              = 0x145
	CCNVRead                = 0x14e
	CCCreate                = 0x153
	CCSequenceUpdate        = 0x15c
	CCContextLoad           = 0x161
	CCContextSave           = 0x162
	CCFlushContext          = 0x165
	CCVerifySignature       = 0x177
	CCGetCapability         = 0x17a
	CCGetRandom             = 0x17b
	CCPCRRead               = 0x17e
	CCPCRExtend             = 0x182
	CCPCRSetAuthValue       = 0x183
	CCEventSequenceComplete = 0x185
	CCHashSequenceStart     = 0x186
	CCCreateLoaded          = 0x191
)

// Ordinals of TPM 1.2 (part 2, 17) that this tree sends or must know.
const (
	OrdExtend             = 0x14
	OrdPCRRead            = 0x15
	OrdGetRandom          = 0x46
	OrdContinueSelfTest   = 0x53
	OrdGetCapability      = 0x65
	OrdCreateEK           = 0x78
	OrdReadPubek          = 0x7c
	OrdSaveState          = 0x98
	OrdStartup            = 0x99
	OrdSHA1CompleteExtend = 0xa3
	OrdPCRReset           = 0xc8
	OrdExecuteTransport   = 0xe6
)

// Results (TPM 2.0 part 2, 6.6.3; TPM 1.2 part 2, 16).
const (
	RCInitialize  = 0x100 // 2.0: TPM2_Startup is required first, or came twice
	RCCommandCode = 0x143 // 2.0: there is no such command
	RCTesting     = 0x90a // 2.0: not yet tested
	RCRetry       = 0x922 // 2.0: could not be started, try again

	// RCLayerRM is added where a resource manager answers in the TPM's place (TSS 2.0 overview, 6.2.2).
	RCLayerRM = 11 << 16

	RCDeactivated   = 0x06  // 1.2
	RCDisabled      = 0x07  // 1.2
	RCDisabledCmd   = 0x08  // 1.2: this command is
	RCBadOrdinal    = 0x0a  // 1.2
	RCBadTag        = 0x1e  // 1.2
	RCNoEndorsement = 0x23  // 1.2
	RCPostInit      = 0x26  // 1.2: TPM_INVALID_POSTINIT: TPM_Startup is required first
	RCRetry12       = 0x800 // 1.2: TPM_RETRY
	RCDoingSelfTest = 0x802 // 1.2
)

// Arguments.
const (
	startClear = 1 // TPM_ST_CLEAR
	suClear    = 0 // TPM_SU_CLEAR
	suState    = 1 // TPM_SU_STATE

	CapHandles    = 1 // TPM_CAP_HANDLES
	CapCommands   = 2 // TPM_CAP_COMMANDS
	CapPCRs       = 5 // TPM_CAP_PCRS
	CapProperties = 6 // TPM_CAP_TPM_PROPERTIES
	ptTotal       = 0x129

	Cap12Flag        = 4    // TPM_CAP_FLAG
	Cap12Prop        = 5    // TPM_CAP_PROPERTY
	Cap12Version     = 6    // TPM_CAP_VERSION
	Cap12VersionInfo = 0x1a // TPM_CAP_VERSION_VAL

	FlagPermanent    = 0x108 // TPM_CAP_FLAG_PERMANENT
	FlagVolatile     = 0x109 // TPM_CAP_FLAG_VOLATILE
	PropManufacturer = 0x103 // TPM_CAP_PROP_MANUFACTURER
	PropOwner        = 0x111 // TPM_CAP_PROP_OWNER
	propPCR          = 0x101
	propTimeout      = 0x115
	propDuration     = 0x120
)

// PCRs is how many registers a bank of a PC's TPM has.
const PCRs = 24
