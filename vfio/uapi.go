package vfio

// Requests of linux/vfio.h and linux/iommufd.h: _IO(';', n), which is the same number on
// amd64 and arm64.
const (
	reqBase = 0x3b00

	reqVersion      = reqBase + 100 // VFIO_GET_API_VERSION
	reqExtension    = reqBase + 101 // VFIO_CHECK_EXTENSION
	reqSetIOMMU     = reqBase + 102 // VFIO_SET_IOMMU
	reqGroupStatus  = reqBase + 103 // VFIO_GROUP_GET_STATUS
	reqSetContainer = reqBase + 104 // VFIO_GROUP_SET_CONTAINER
	reqDeviceFD     = reqBase + 106 // VFIO_GROUP_GET_DEVICE_FD
	reqDeviceInfo   = reqBase + 107 // VFIO_DEVICE_GET_INFO
	reqRegionInfo   = reqBase + 108 // VFIO_DEVICE_GET_REGION_INFO
	reqIRQInfo      = reqBase + 109 // VFIO_DEVICE_GET_IRQ_INFO
	reqSetIRQs      = reqBase + 110 // VFIO_DEVICE_SET_IRQS
	reqReset        = reqBase + 111 // VFIO_DEVICE_RESET
	reqHotResetInfo = reqBase + 112 // VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, of a device
	reqHotReset     = reqBase + 113 // VFIO_DEVICE_PCI_HOT_RESET, of a device
	reqIOMMUInfo    = reqBase + 112 // VFIO_IOMMU_GET_INFO, of a container
	reqMapDMA       = reqBase + 113 // VFIO_IOMMU_MAP_DMA, of a container
	reqUnmapDMA     = reqBase + 114 // VFIO_IOMMU_UNMAP_DMA, of a container
	reqBind         = reqBase + 118 // VFIO_DEVICE_BIND_IOMMUFD
	reqAttach       = reqBase + 119 // VFIO_DEVICE_ATTACH_IOMMUFD_PT

	reqIOASAlloc  = reqBase + 0x81 // IOMMU_IOAS_ALLOC
	reqIOASRanges = reqBase + 0x84 // IOMMU_IOAS_IOVA_RANGES
	reqIOASMap    = reqBase + 0x85 // IOMMU_IOAS_MAP
	reqIOASUnmap  = reqBase + 0x86 // IOMMU_IOAS_UNMAP
)

// Kinds of IOMMU, which are extensions too.
const (
	kindType1v2 = 3 // VFIO_TYPE1v2_IOMMU
	kindNone    = 8 // VFIO_NOIOMMU_IOMMU
)

// apiVersion is VFIO_API_VERSION.
const apiVersion = 0

// Flags of a group.
const groupViable = 1 << 0 // VFIO_GROUP_FLAGS_VIABLE

// Flags of a device.
const (
	deviceReset = 1 << 0 // VFIO_DEVICE_FLAGS_RESET
	devicePCI   = 1 << 1 // VFIO_DEVICE_FLAGS_PCI
)

// Regions of a PCI device: 0 to 5 are the BARs.
const (
	bars         = 6
	regionConfig = 7
)

// Flags and capabilities of a region.
const (
	regionRead  = 1 << 0 // VFIO_REGION_INFO_FLAG_READ
	regionWrite = 1 << 1 // VFIO_REGION_INFO_FLAG_WRITE
	regionMmap  = 1 << 2 // VFIO_REGION_INFO_FLAG_MMAP
	regionCaps  = 1 << 3 // VFIO_REGION_INFO_FLAG_CAPS

	regionInfoSize = 32

	capSparse       = 1 // VFIO_REGION_INFO_CAP_SPARSE_MMAP
	capMSIXMappable = 3 // VFIO_REGION_INFO_CAP_MSIX_MAPPABLE
)

// Interrupts of a PCI device.
const (
	irqINTx = 0
	irqMSI  = 1
	irqMSIX = 2
	irqErr  = 3 // VFIO_PCI_ERR_IRQ_INDEX: an error of the bus
	irqReq  = 4 // VFIO_PCI_REQ_IRQ_INDEX: the kernel wants the device back
)

// Flags of interrupts, and of setting them.
const (
	irqEventfd = 1 << 0 // VFIO_IRQ_INFO_EVENTFD

	setNone    = 1 << 0 // VFIO_IRQ_SET_DATA_NONE
	setEventfd = 1 << 2 // VFIO_IRQ_SET_DATA_EVENTFD
	setMask    = 1 << 3 // VFIO_IRQ_SET_ACTION_MASK
	setUnmask  = 1 << 4 // VFIO_IRQ_SET_ACTION_UNMASK
	setTrigger = 1 << 5 // VFIO_IRQ_SET_ACTION_TRIGGER

	irqSetSize = 20
)

// Hot reset.
const (
	hotByDevice = 1 << 0 // VFIO_PCI_HOT_RESET_FLAG_DEV_ID
	hotOwned    = 1 << 1 // VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED

	hotInfoSize  = 12
	hotEntrySize = 8
)

// What type1 tells of itself.
const (
	iommuPageSizes = 1 << 0 // VFIO_IOMMU_INFO_PGSIZES
	iommuCaps      = 1 << 1 // VFIO_IOMMU_INFO_CAPS

	// iommuInfoSize is up to iova_pgsizes, as before there was cap_offset behind it.
	iommuInfoSize = 16

	capRanges = 1 // VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE
	capAvail  = 3 // VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL
)

// perm is what a device may do with memory.
type perm uint8

const (
	permRead  perm = 1 << 0
	permWrite perm = 1 << 1
)

// Flags of mapping: type1's and iommufd's.
const (
	mapRead  = 1 << 0 // VFIO_DMA_MAP_FLAG_READ
	mapWrite = 1 << 1 // VFIO_DMA_MAP_FLAG_WRITE

	ioasFixed = 1 << 0 // IOMMU_IOAS_MAP_FIXED_IOVA
	ioasWrite = 1 << 1 // IOMMU_IOAS_MAP_WRITEABLE
	ioasRead  = 1 << 2 // IOMMU_IOAS_MAP_READABLE
)
