//! How much of the kernel's stack the programs take at most, read off the object, so that whoever
//! takes more hears of it on any kernel. Linux 6.1 to 6.6 round each function's part up the most.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use aya_obj::Object;
use aya_obj::generated::bpf_insn;

/// What there is (include/linux/filter.h: MAX_BPF_STACK).
const STACK: usize = 512;
/// What is kept free of it: compilers and later work take some.
const RESERVE: usize = 64;
/// What each function's part is rounded up to (kernel/bpf/verifier.c: check_max_stack_depth).
const STEP: usize = 32;
/// So many functions may be in each other (include/linux/bpf_verifier.h: MAX_CALL_FRAMES).
const FRAMES: usize = 8;

/// The frame pointer's register.
const R10: u8 = 10;
/// Instructions (include/uapi/linux/bpf.h).
const CALL: u8 = 0x85;
const LOAD_IMMEDIATE: u8 = 0x18;
const MOVE: u8 = 0xbf;
const ADD: u8 = 0x07;
/// Who is called, or named, is one of the program's own functions.
const PSEUDO_CALL: u8 = 1;
const PSEUDO_FUNCTION: u8 = 4;

/// One function of a program.
#[derive(Debug, Default)]
struct Function {
    stack: usize,
    calls: BTreeSet<usize>,
}

/// A program's functions by where they begin.
type Functions = BTreeMap<usize, Function>;

/// The function that an instruction calls, or gives to a helper that does.
fn called(at: usize, instruction: &bpf_insn) -> Option<usize> {
    let is_it = match instruction.code {
        CALL => instruction.src_reg() == PSEUDO_CALL,
        LOAD_IMMEDIATE => instruction.src_reg() == PSEUDO_FUNCTION,
        _ => false,
    };
    let next = isize::try_from(at + 1).unwrap();
    is_it.then(|| usize::try_from(next + isize::try_from(instruction.imm).unwrap()).unwrap())
}

fn functions(instructions: &[bpf_insn]) -> Functions {
    let calls = instructions.iter().enumerate();
    let calls: Vec<_> = calls.filter_map(|(at, one)| Some((at, called(at, one)?))).collect();
    let mut starts: BTreeSet<usize> = calls.iter().map(|&(_, to)| to).collect();
    starts.insert(0);
    let ends = starts.iter().skip(1).copied().chain([instructions.len()]);
    let whole = starts.iter().copied().zip(ends);
    whole
        .map(|(start, end)| {
            let calls = calls.iter().filter(|(at, _)| (start..end).contains(at));
            let calls = calls.map(|&(_, to)| to).collect();
            (start, Function { stack: stack(&instructions[start..end]), calls })
        })
        .collect()
}

/// How far below the frame pointer a function reaches.
fn stack(instructions: &[bpf_insn]) -> usize {
    let mut lowest: i32 = 0;
    let mut pointers = HashSet::new();
    for one in instructions {
        let (to, from) = (one.dst_reg(), one.src_reg());
        // Loads go from the address in `from`, stores to that in `to`.
        let based = match one.code & 0x07 {
            1 => from,
            2 | 3 => to,
            _ => {
                if one.code == ADD && pointers.contains(&to) {
                    lowest = lowest.min(one.imm);
                }
                if one.code == MOVE && from == R10 {
                    pointers.insert(to);
                } else {
                    pointers.remove(&to);
                }
                continue;
            }
        };
        if based == R10 {
            lowest = lowest.min(one.off.into());
        }
        if one.code & 0x07 == 1 {
            pointers.remove(&to);
        }
    }
    usize::try_from(-lowest).unwrap()
}

/// The deepest chain of calls that begins there: bytes, functions, and each one's stack in words.
fn deepest(functions: &Functions, start: usize) -> (usize, usize, String) {
    let function = &functions[&start];
    let chains: Vec<_> = function.calls.iter().map(|&to| deepest(functions, to)).collect();
    let frames = chains.iter().map(|chain| chain.1).max().unwrap_or(0);
    let (bytes, _, words) = chains.into_iter().max().unwrap_or_default();
    // One that takes nothing takes a step.
    let own = function.stack.max(1).next_multiple_of(STEP);
    (own + bytes, frames + 1, format!("{}+{words}", function.stack))
}

fn programs() -> BTreeMap<String, Vec<bpf_insn>> {
    let mut object = Object::parse(netpol_datapath::OBJECT).unwrap();
    let sections = object.functions.keys().map(|key| key.0).collect();
    object.relocate_calls(&sections).unwrap();
    let programs = object.programs.iter();
    programs
        .map(|(name, program)| {
            (name.clone(), object.functions[&program.function_key()].instructions.clone())
        })
        .collect()
}

#[test]
fn every_program_leaves_a_reserve_of_stack() {
    let programs = programs();
    assert!(programs.contains_key("netpol_ingress"), "{:?}", programs.keys());
    for (name, instructions) in programs {
        let functions = functions(&instructions);
        let (bytes, frames, words) = deepest(&functions, 0);
        println!("{name}: {bytes} bytes, {frames} functions deep: {words}");
        assert!(
            bytes + RESERVE <= STACK,
            "{name} takes {bytes} bytes of stack on Linux 6.1, of which {RESERVE} of {STACK} are to \
             stay free: {words}"
        );
        assert!(frames <= FRAMES, "{name} has {frames} functions in each other");
        if name == "netpol_ingress" {
            assert!(frames >= 5 && bytes >= 300, "calls are overlooked: {words}");
        }
    }
}

#[test]
fn stack_is_counted_as_the_kernel_does() {
    let one = |code, to: u8, from: u8, off, imm| {
        let mut one =
            bpf_insn { code, _bitfield_align_1: [], _bitfield_1: Default::default(), off, imm };
        one.set_dst_reg(to);
        one.set_src_reg(from);
        one
    };
    // `*(u64 *)(r10 - 40) = r1; r2 = r10; r2 += -48; call the next but one; exit; r0 = 0; exit`
    let program = [
        one(0x7b, R10, 1, -40, 0),
        one(MOVE, 2, R10, 0, 0),
        one(ADD, 2, 0, 0, -48),
        one(CALL, 0, PSEUDO_CALL, 0, 1),
        one(0x95, 0, 0, 0, 0),
        one(0xb7, 0, 0, 0, 0),
        one(0x95, 0, 0, 0, 0),
    ];
    let functions = functions(&program);
    assert_eq!(functions.keys().copied().collect::<Vec<_>>(), [0, 5]);
    assert_eq!(deepest(&functions, 0), (64 + 32, 2, "48+0+".to_owned()));
}
