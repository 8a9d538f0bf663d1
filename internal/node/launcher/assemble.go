package launcher

import (
	"fmt"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The filter is assembled here and not by go-seccomp-bpf, from which only the
// tables of numbers come: in version 1.6.0, a call whose conditions fail goes
// on to the next rule with its argument where its number should be, and so may
// be taken for another call. Here a call that meets its rule never leaves it.

// verdict is what a filter returns.
type verdict uint32

const (
	allow  verdict = unix.SECCOMP_RET_ALLOW
	refuse verdict = unix.SECCOMP_RET_ERRNO | verdict(unix.EPERM)
	absent verdict = unix.SECCOMP_RET_ERRNO | verdict(unix.ENOSYS)
	kill   verdict = unix.SECCOMP_RET_KILL_PROCESS
)

// rule is what becomes of one system call. Without alternatives it is then;
// else then if all conditions of one of them hold, and otherwise if of none.
type rule struct {
	name            string
	when            [][]condition
	then, otherwise verdict
}

// condition is one on an argument.
type condition struct {
	arg   int
	is    comparison
	value uint64
}

// comparison is a kind of condition. Registers are compared in all their 64
// bits, so that a value that the kernel would cut to 32 does not slip past.
type comparison int

const (
	equal   comparison = iota
	allSet             // all bits of value, which has them in its lower half
	noneSet            // none of them, nor any of the upper half
	not32              // another number, of 32 bits
)

// Offsets in struct seccomp_data. The machines in question are little-endian.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

func lower(arg int) bpf.Instruction {
	return bpf.LoadAbsolute{Off: uint32(offArgs + 8*arg), Size: 4}
}
func upper(arg int) bpf.Instruction {
	return bpf.LoadAbsolute{Off: uint32(offArgs + 8*arg + 4), Size: 4}
}

// test is the code of a condition: it goes on behind itself if it holds, and
// skips to fail instructions behind itself if not.
func (c condition) test(fail int) []bpf.Instruction {
	half := func(load bpf.Instruction, cond bpf.JumpTest, v uint32, skip int) []bpf.Instruction {
		return []bpf.Instruction{load, bpf.JumpIf{Cond: cond, Val: v, SkipFalse: uint8(skip)}}
	}
	hi, lo := uint32(c.value>>32), uint32(c.value)
	switch c.is {
	case allSet:
		// Masked, then compared: the machine's own bit test is true for any.
		return []bpf.Instruction{
			lower(c.arg), bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: lo}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: lo, SkipFalse: uint8(fail)},
		}
	case noneSet:
		return append(half(upper(c.arg), bpf.JumpEqual, 0, fail+2), half(lower(c.arg), bpf.JumpBitsNotSet, lo, fail)...)
	case not32:
		return append(half(upper(c.arg), bpf.JumpEqual, 0, fail+2), half(lower(c.arg), bpf.JumpNotEqual, lo, fail)...)
	}
	return append(half(upper(c.arg), bpf.JumpEqual, hi, fail+2), half(lower(c.arg), bpf.JumpEqual, lo, fail)...)
}

// code is the code of a rule, for a call with that number in the accumulator.
// It goes on behind itself for another number, and only then.
func (r rule) code(number uint32) ([]bpf.Instruction, error) {
	var body []bpf.Instruction
	for _, alternative := range r.when {
		// From its end backwards, for the lengths to jump over are known then.
		tail := []bpf.Instruction{bpf.RetConstant{Val: uint32(r.then)}}
		for i := len(alternative) - 1; i >= 0; i-- {
			tail = append(alternative[i].test(len(tail)), tail...)
		}
		body = append(body, tail...)
	}
	last := r.otherwise
	if len(r.when) == 0 {
		last = r.then
	}
	body = append(body, bpf.RetConstant{Val: uint32(last)})
	if len(body) > 255 {
		return nil, fmt.Errorf("the rule for %s takes %d instructions", r.name, len(body))
	}
	return append([]bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpEqual, Val: number, SkipFalse: uint8(len(body))}}, body...), nil
}

// assemble makes the filter of rules. Calls that this architecture lacks are
// left out; those without a rule are refused, and another architecture's end
// the VMM.
func assemble(rules []rule) ([]unix.SockFilter, error) {
	info, err := arch.GetInfo("")
	if err != nil {
		return nil, fmt.Errorf("looking up system calls: %w", err)
	}
	prog, err := program(info, rules)
	if err != nil {
		return nil, err
	}
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return nil, fmt.Errorf("assembling the filter: %w", err)
	}
	out := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		out[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return out, nil
}

func program(info *arch.Info, rules []rule) ([]bpf.Instruction, error) {
	const x32 = 0x40000000 // numbers from here on are x32's, under amd64's name
	prog := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(info.ID), SkipTrue: 1},
		bpf.RetConstant{Val: uint32(kill)},
		bpf.LoadAbsolute{Off: offNumber, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: x32, SkipTrue: 1},
		bpf.RetConstant{Val: uint32(kill)},
	}
	for _, r := range rules {
		number, known := info.SyscallNames[r.name]
		if !known {
			continue
		}
		code, err := r.code(uint32(number))
		if err != nil {
			return nil, err
		}
		prog = append(prog, code...)
	}
	return append(prog, bpf.RetConstant{Val: uint32(refuse)}), nil
}
