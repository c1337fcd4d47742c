//! A profile compiled: the program that the kernel runs at each call.

use super::{ARCH, Argument, Compiled, Machine, Profile, Rule, flags};
use crate::syscalls;

/// The most that the kernel takes.
const INSTRUCTIONS_MAX: usize = 4096;
/// Numbers from here on are of x32, another set of calls by other numbers: a profile that forbids calls by
/// name would not catch them.
const X32: u32 = 0x4000_0000;

/// # Errors
/// What is wrong in the profile, and where.
pub(crate) fn compile(text: &[u8], machine: &Machine) -> Result<Compiled, String> {
    let profile = Profile::read(text)?;
    let (arch, _) =
        ARCH.ok_or_else(|| format!("profiles cannot be applied on {}", std::env::consts::ARCH))?;
    let default = profile.default()?;
    let mut program = vec![
        load(4),
        jump(libc::BPF_JEQ, arch, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(0),
    ];
    if cfg!(target_arch = "x86_64") {
        program.push(jump(libc::BPF_JGE, X32, 0, 1));
        program.push(answer(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32));
    }
    let rules = profile.rules(machine, |rule| {
        let does = rule.does()?;
        if does == default {
            return Ok(Vec::new());
        }
        // A call that this machine does not have cannot be made.
        let numbers = rule.names().filter_map(|name| syscalls::number(name));
        let blocks = numbers.map(|number| rule.blocks(number, does)).collect::<Result<Vec<_>, _>>();
        Ok(blocks?.concat())
    });
    program.extend(rules?.concat());
    program.push(answer(default));
    if program.len() > INSTRUCTIONS_MAX {
        return Err(format!(
            "it compiles to {} instructions, of which the kernel takes {INSTRUCTIONS_MAX}",
            program.len()
        ));
    }
    Ok(Compiled { program, flags: flags(&profile.flags)? })
}

impl Rule {
    /// All arguments must be so. Where two say something of the same one, any of them: that is how other
    /// runtimes have always read it.
    fn blocks(&self, number: u32, does: u32) -> Result<Vec<u64>, String> {
        let args: Vec<&Argument> = self.args.iter().flatten().collect();
        if args.is_empty() {
            return Ok(vec![jump(libc::BPF_JEQ, number, 0, 1), answer(does)]);
        }
        let mut seen = [false; 6];
        let twice = args.iter().any(|a| {
            seen.get_mut(a.index as usize).is_some_and(|seen| std::mem::replace(seen, true))
        });
        if !twice {
            return block(number, &args, does);
        }
        let each = args.iter().map(|argument| block(number, &[argument], does));
        Ok(each.collect::<Result<Vec<_>, _>>()?.concat())
    }
}

/// With the call's number loaded, and loaded again after it.
fn block(number: u32, args: &[&Argument], does: u32) -> Result<Vec<u64>, String> {
    let tests = args.iter().map(|argument| argument.test()).collect::<Result<Vec<_>, _>>()?;
    // Each test falls through where it holds, and else jumps to the end, where the number is loaded again.
    let mut left: usize = tests.iter().map(Vec::len).sum::<usize>() + 1;
    let too_long = |_| "too many args".to_owned();
    let skip = u8::try_from(left + 1).map_err(too_long)?;
    let mut block = vec![jump(libc::BPF_JEQ, number, 0, skip)];
    for instruction in tests.into_iter().flatten() {
        left -= 1;
        block.push(match instruction {
            Test::Plain(instruction) => instruction,
            Test::Need { test, value } => {
                jump(test, value, 0, u8::try_from(left).map_err(too_long)?)
            }
            Test::Reject { test, value } => {
                jump(test, value, u8::try_from(left).map_err(too_long)?, 0)
            }
            Test::Enough { test, value, past } => jump(test, value, past, 0),
            Test::EnoughUnless { test, value, past } => jump(test, value, 0, past),
        });
    }
    block.extend([answer(does), load(0)]);
    Ok(block)
}

/// A step of a test of a 64-bit argument, in halves.
enum Test {
    Plain(u64),
    /// Goes on if so; else the rule does not apply.
    Need {
        test: u32,
        value: u32,
    },
    /// The rule does not apply if so.
    Reject {
        test: u32,
        value: u32,
    },
    /// So many steps are left out if so.
    Enough {
        test: u32,
        value: u32,
        past: u8,
    },
    /// So many steps are left out if not.
    EnoughUnless {
        test: u32,
        value: u32,
        past: u8,
    },
}

impl Argument {
    /// # Errors
    /// Why it is no test of an argument.
    pub(super) fn check(&self) -> Result<(), String> {
        self.test().map(drop)
    }

    fn test(&self) -> Result<Vec<Test>, String> {
        use Test::{Enough, EnoughUnless, Need, Plain, Reject};
        if self.index > 5 {
            return Err(format!("args: index {} is not between 0 and 5", self.index));
        }
        let halves = |value: u64| ((value >> 32) as u32, value as u32);
        let (high, low) = (Plain(load(16 + self.index * 8 + 4)), Plain(load(16 + self.index * 8)));
        let (value_high, value_low) = halves(self.value);
        let need = |test, value| Need { test, value };
        let reject = |test, value| Reject { test, value };
        // Decided by the high half where they differ in it, else by the low one.
        let greater = |or_equal: bool| {
            let low_test = if or_equal { libc::BPF_JGE } else { libc::BPF_JGT };
            vec![
                Plain(load(16 + self.index * 8 + 4)),
                Enough { test: libc::BPF_JGT, value: value_high, past: 3 },
                need(libc::BPF_JEQ, value_high),
                Plain(load(16 + self.index * 8)),
                need(low_test, value_low),
            ]
        };
        let less = |or_equal: bool| {
            let low_test = if or_equal { libc::BPF_JGT } else { libc::BPF_JGE };
            vec![
                Plain(load(16 + self.index * 8 + 4)),
                reject(libc::BPF_JGT, value_high),
                EnoughUnless { test: libc::BPF_JGE, value: value_high, past: 2 },
                Plain(load(16 + self.index * 8)),
                reject(low_test, value_low),
            ]
        };
        Ok(match self.op.as_str() {
            "SCMP_CMP_EQ" => {
                vec![high, need(libc::BPF_JEQ, value_high), low, need(libc::BPF_JEQ, value_low)]
            }
            "SCMP_CMP_NE" => {
                // Another high half is enough; else the low one must be another.
                let same_high = Enough { test: libc::BPF_JEQ, value: value_high, past: 1 };
                let jump_over = Plain(always(2));
                vec![high, same_high, jump_over, low, reject(libc::BPF_JEQ, value_low)]
            }
            "SCMP_CMP_MASKED_EQ" => {
                let (mask_high, mask_low) = halves(self.value);
                let (wanted_high, wanted_low) = halves(self.value_two);
                vec![
                    high,
                    Plain(and(mask_high)),
                    need(libc::BPF_JEQ, wanted_high & mask_high),
                    low,
                    Plain(and(mask_low)),
                    need(libc::BPF_JEQ, wanted_low & mask_low),
                ]
            }
            "SCMP_CMP_GT" => greater(false),
            "SCMP_CMP_GE" => greater(true),
            "SCMP_CMP_LT" => less(false),
            "SCMP_CMP_LE" => less(true),
            other => return Err(format!("args: unknown op {other:?}")),
        })
    }
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> u64 {
    u64::from(code as u16) | u64::from(jt) << 16 | u64::from(jf) << 24 | u64::from(k) << 32
}

/// A word of what a filter sees: number, architecture, address, six arguments.
fn load(offset: u32) -> u64 {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset)
}

fn jump(test: u32, k: u32, jt: u8, jf: u8) -> u64 {
    instruction(libc::BPF_JMP | test | libc::BPF_K, jt, jf, k)
}

fn always(steps: u32) -> u64 {
    instruction(libc::BPF_JMP | libc::BPF_JA, 0, 0, steps)
}

fn and(mask: u32) -> u64 {
    instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, mask)
}

fn answer(action: u32) -> u64 {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, action)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities;
    use serde_json::{Value, json};

    fn machine() -> Machine {
        Machine { capabilities: capabilities::bit("CHOWN").unwrap(), kernel: (6, 1) }
    }

    fn compiled(profile: &Value) -> Result<Compiled, String> {
        compile(profile.to_string().as_bytes(), &machine())
    }

    /// Runs a filter as the kernel does.
    fn run(program: &[u64], number: u32, args: &[u64]) -> u32 {
        let word = |offset: u32| match offset {
            0 => number,
            4 => ARCH.unwrap().0,
            _ => {
                let value = args.get((offset as usize - 16) / 8).copied().unwrap_or_default();
                if offset % 8 == 4 { (value >> 32) as u32 } else { value as u32 }
            }
        };
        let (mut at, mut a) = (0usize, 0u32);
        loop {
            let one = program[at];
            let (code, jt, jf, k) =
                (one as u16 as u32, (one >> 16) as u8, (one >> 24) as u8, (one >> 32) as u32);
            at += 1;
            let test = match code {
                c if c == libc::BPF_RET | libc::BPF_K => return k,
                c if c == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                    a = word(k);
                    continue;
                }
                c if c == libc::BPF_ALU | libc::BPF_AND | libc::BPF_K => {
                    a &= k;
                    continue;
                }
                c if c == libc::BPF_JMP | libc::BPF_JA => {
                    at += k as usize;
                    continue;
                }
                c if c == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => a == k,
                c if c == libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K => a > k,
                c if c == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => a >= k,
                other => panic!("{other:#x}"),
            };
            at += usize::from(if test { jt } else { jf });
        }
    }

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const EPERM: u32 = libc::SECCOMP_RET_ERRNO | 1;

    #[test]
    fn names_decide() {
        let profile = json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
            {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["chown", "fchownat"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_CHOWN"]}},
            {"names": ["reboot"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_BOOT"]}},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "4.8"}},
        ]});
        let program = compiled(&profile).unwrap().program;
        let check = |name: &str, expected: u32| {
            assert_eq!(run(&program, syscalls::number(name).unwrap(), &[]), expected, "{name}");
        };
        check("read", ALLOW);
        check("write", EPERM);
        check("mkdirat", libc::SECCOMP_RET_ERRNO | 38);
        check("fchownat", ALLOW);
        check("reboot", EPERM);
        check("ptrace", ALLOW);
        check("bpf", EPERM);
        if cfg!(target_arch = "x86_64") {
            assert_eq!(run(&program, X32, &[]), libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
        }
    }

    #[test]
    fn arguments_decide() {
        let socket = syscalls::number("socket").unwrap();
        let check = |args: Value, given: &[u64], expected: bool| {
            let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "args": args},
                {"names": ["read"], "action": "SCMP_ACT_ERRNO"}]});
            let program = compiled(&profile).unwrap().program;
            let expected = if expected { EPERM } else { ALLOW };
            assert_eq!(run(&program, socket, given), expected, "{args} of {given:x?}");
            assert_eq!(run(&program, syscalls::number("read").unwrap(), given), EPERM);
            assert_eq!(run(&program, syscalls::number("write").unwrap(), given), ALLOW);
        };
        let limit = 0x1_0000_0005u64;
        let around = [5, 0x1_0000_0004, limit, 0x1_0000_0006, 0x2_0000_0000, u64::MAX];
        let one = |op: &str| json!([{"index": 0, "op": op, "value": limit}]);
        for value in around {
            check(one("SCMP_CMP_EQ"), &[value], value == limit);
            check(one("SCMP_CMP_NE"), &[value], value != limit);
            check(one("SCMP_CMP_GT"), &[value], value > limit);
            check(one("SCMP_CMP_GE"), &[value], value >= limit);
            check(one("SCMP_CMP_LT"), &[value], value < limit);
            check(one("SCMP_CMP_LE"), &[value], value <= limit);
            let masked = json!([{"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": 0x1_0000_000fu64, "valueTwo": 5}]);
            check(masked, &[value], value & 0x1_0000_000f == 5);
        }
        let both = json!([{"index": 0, "op": "SCMP_CMP_EQ", "value": 2}, {"index": 1, "op": "SCMP_CMP_GT", "value": 3}]);
        for (given, expected) in [([2, 4], true), ([2, 3], false), ([1, 4], false)] {
            check(both.clone(), &given, expected);
        }
        let either = json!([{"index": 0, "op": "SCMP_CMP_EQ", "value": 2}, {"index": 0, "op": "SCMP_CMP_EQ", "value": 7}]);
        for (given, expected) in [([2], true), ([7], true), ([3], false)] {
            check(either.clone(), &given, expected);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        #[track_caller]
        fn check(profile: Value, expected: &str) {
            let error = compiled(&profile).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        check(json!({}), "missing field `defaultAction`");
        check(json!({"defaultAction": "DENY"}), "defaultAction: unknown action \"DENY\"");
        let rule = |rule: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
        check(rule(json!({"names": ["read"], "action": "X"})), "syscalls[0]: unknown action \"X\"");
        check(rule(json!({"names": ["read"], "action": "SCMP_ACT_NOTIFY"})), "needs a listener");
        let args = json!([{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]);
        check(
            rule(json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": args})),
            "index 6",
        );
        let flags =
            json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_NEW"]});
        check(flags, "SECCOMP_FILTER_FLAG_NEW");
    }
}
