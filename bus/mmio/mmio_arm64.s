//go:build !race

#include "textflag.h"

// Operands of DMB (Arm ARM, C6.2): 0xd full system, loads; 0xe full system, stores; 0xf full
// system. A load from a device is followed by a DMB of loads, so that later reads
// of DMA memory see what the device wrote before it answered; a store to one is preceded
// by a DMB of stores, so that the device finds the descriptors.
#define DMB_LD DMB $0xd
#define DMB_ST DMB $0xe
#define DMB_SY DMB $0xf

// func load8(p *uint8) uint8
TEXT ·load8(SB), NOSPLIT, $0-9
	MOVD p+0(FP), R0
	MOVBU (R0), R1
	DMB_LD
	MOVB R1, ret+8(FP)
	RET

// func load16(p *uint16) uint16
TEXT ·load16(SB), NOSPLIT, $0-10
	MOVD p+0(FP), R0
	MOVHU (R0), R1
	DMB_LD
	MOVH R1, ret+8(FP)
	RET

// func load32(p *uint32) uint32
TEXT ·load32(SB), NOSPLIT, $0-12
	MOVD p+0(FP), R0
	MOVWU (R0), R1
	DMB_LD
	MOVW R1, ret+8(FP)
	RET

// func load64(p *uint64) uint64
TEXT ·load64(SB), NOSPLIT, $0-16
	MOVD p+0(FP), R0
	MOVD (R0), R1
	DMB_LD
	MOVD R1, ret+8(FP)
	RET

// func store8(p *uint8, v uint8)
TEXT ·store8(SB), NOSPLIT, $0-9
	MOVD p+0(FP), R0
	MOVBU v+8(FP), R1
	DMB_ST
	MOVB R1, (R0)
	RET

// func store16(p *uint16, v uint16)
TEXT ·store16(SB), NOSPLIT, $0-10
	MOVD p+0(FP), R0
	MOVHU v+8(FP), R1
	DMB_ST
	MOVH R1, (R0)
	RET

// func store32(p *uint32, v uint32)
TEXT ·store32(SB), NOSPLIT, $0-12
	MOVD p+0(FP), R0
	MOVWU v+8(FP), R1
	DMB_ST
	MOVW R1, (R0)
	RET

// func store64(p *uint64, v uint64)
TEXT ·store64(SB), NOSPLIT, $0-16
	MOVD p+0(FP), R0
	MOVD v+8(FP), R1
	DMB_ST
	MOVD R1, (R0)
	RET

// func WriteBarrier()
TEXT ·WriteBarrier(SB), NOSPLIT, $0-0
	DMB_ST
	RET

// func ReadBarrier()
TEXT ·ReadBarrier(SB), NOSPLIT, $0-0
	DMB_LD
	RET

// func Barrier()
TEXT ·Barrier(SB), NOSPLIT, $0-0
	DMB_SY
	RET
