#include "textflag.h"

// The SHA extensions (Intel SDM vol. 2, SHA256RNDS2, SHA256MSG1, SHA256MSG2). A state of eight words a…h is held
// as ABEF and CDGH. One SHA256RNDS2 is two rounds and needs the result of the one before it, so a single hash leaves the
// unit idle half of the time: a second state goes into the gaps. Both take the same words plus constants, since
// they hash the same block.

// X0 words plus constants, implied by SHA256RNDS2
// X1, X2 ABEF and CDGH of the first hash; X3, X4 of the second
// X5…X8 the last sixteen words of the message schedule, four each
// X9 scratch; X10 byte order
// X11…X14 both states before the block

// ROUNDS is four rounds of both hashes.
#define ROUNDS(words, k) \
	MOVOU       k(AX), X0; \
	PADDD       words, X0; \
	SHA256RNDS2 X0, X1, X2; \
	SHA256RNDS2 X0, X3, X4; \
	PSHUFD      $0x0e, X0, X0; \
	SHA256RNDS2 X0, X2, X1; \
	SHA256RNDS2 X0, X4, X3

// LOAD reads four words of the block.
#define LOAD(words, off) \
	MOVOU  off(SI), words; \
	PSHUFB X10, words

// EXTEND finishes the four words after words; their place holds SHA256MSG1 of those sixteen before.
#define EXTEND(before, words, next) \
	MOVO       words, X9; \
	PALIGNR    $4, before, X9; \
	PADDD      X9, next; \
	SHA256MSG2 words, next

// PACK makes ABEF and CDGH of a…d and e…h.
#define PACK(x, y) \
	PSHUFD  $0xb1, x, x; \
	PSHUFD  $0x1b, y, y; \
	MOVO    x, X9; \
	PALIGNR $8, y, x; \
	PBLENDW $0xf0, X9, y

// UNPACK undoes PACK.
#define UNPACK(x, y) \
	PSHUFD  $0x1b, x, x; \
	PSHUFD  $0xb1, y, y; \
	MOVO    x, X9; \
	PBLENDW $0xf0, y, x; \
	PALIGNR $8, X9, y

// func twoBlocks(a, b *[8]uint32, p []byte, k *[64]uint32)
TEXT ·twoBlocks(SB), NOSPLIT, $0-48
	MOVQ a+0(FP), DI
	MOVQ b+8(FP), BX
	MOVQ p_base+16(FP), SI
	MOVQ p_len+24(FP), DX
	MOVQ k+40(FP), AX
	SHRQ $6, DX
	JZ   done

	MOVOU 0(DI), X1
	MOVOU 16(DI), X2
	PACK(X1, X2)
	MOVOU 0(BX), X3
	MOVOU 16(BX), X4
	PACK(X3, X4)
	MOVOU bigEndian<>(SB), X10

block:
	MOVO X1, X11
	MOVO X2, X12
	MOVO X3, X13
	MOVO X4, X14

	LOAD(X5, 0)
	ROUNDS(X5, 0)

	LOAD(X6, 16)
	ROUNDS(X6, 16)
	SHA256MSG1 X6, X5

	LOAD(X7, 32)
	ROUNDS(X7, 32)
	SHA256MSG1 X7, X6

	LOAD(X8, 48)
	EXTEND(X7, X8, X5)
	ROUNDS(X8, 48)
	SHA256MSG1 X8, X7

	EXTEND(X8, X5, X6)
	ROUNDS(X5, 64)
	SHA256MSG1 X5, X8

	EXTEND(X5, X6, X7)
	ROUNDS(X6, 80)
	SHA256MSG1 X6, X5

	EXTEND(X6, X7, X8)
	ROUNDS(X7, 96)
	SHA256MSG1 X7, X6

	EXTEND(X7, X8, X5)
	ROUNDS(X8, 112)
	SHA256MSG1 X8, X7

	EXTEND(X8, X5, X6)
	ROUNDS(X5, 128)
	SHA256MSG1 X5, X8

	EXTEND(X5, X6, X7)
	ROUNDS(X6, 144)
	SHA256MSG1 X6, X5

	EXTEND(X6, X7, X8)
	ROUNDS(X7, 160)
	SHA256MSG1 X7, X6

	EXTEND(X7, X8, X5)
	ROUNDS(X8, 176)
	SHA256MSG1 X8, X7

	EXTEND(X8, X5, X6)
	ROUNDS(X5, 192)
	SHA256MSG1 X5, X8

	EXTEND(X5, X6, X7)
	ROUNDS(X6, 208)

	EXTEND(X6, X7, X8)
	ROUNDS(X7, 224)

	ROUNDS(X8, 240)

	PADDD X11, X1
	PADDD X12, X2
	PADDD X13, X3
	PADDD X14, X4

	ADDQ $64, SI
	DECQ DX
	JNZ  block

	UNPACK(X1, X2)
	MOVOU X1, 0(DI)
	MOVOU X2, 16(DI)
	UNPACK(X3, X4)
	MOVOU X3, 0(BX)
	MOVOU X4, 16(BX)

done:
	RET

DATA bigEndian<>+0(SB)/8, $0x0405060700010203
DATA bigEndian<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL bigEndian<>(SB), RODATA|NOPTR, $16

// func cpuid(leaf, sub uint32) (eax, ebx, ecx, edx uint32)
TEXT ·cpuid(SB), NOSPLIT, $0-24
	MOVL leaf+0(FP), AX
	MOVL sub+4(FP), CX
	CPUID
	MOVL AX, eax+8(FP)
	MOVL BX, ebx+12(FP)
	MOVL CX, ecx+16(FP)
	MOVL DX, edx+20(FP)
	RET
