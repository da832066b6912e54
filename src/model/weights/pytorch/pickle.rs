//! A reader of pickles that builds a description of the objects and runs nothing: a call that the pickle asks for is
//! noted, and refused unless it is one of those that `torch.save` writes for a state dict.
//!
//! Objects live in one arena and refer to each other by place, so that no input makes it copy, recurse or allocate
//! more than a small multiple of its own length. Opcodes: `CPython`'s `Lib/pickletools.py`.

use std::collections::HashMap;

/// The place of an object in [`Objects`].
pub(super) type Id = usize;

/// What a pickle can describe, as far as state dicts need it.
#[derive(Debug)]
pub(super) enum Object {
    /// A class or function by `module.name`.
    Global(String),
    Int(i64),
    Float(f64),
    Bool,
    None,
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A call that rebuilds an object: which function, with which tuple of arguments.
    Call(Id, Id),
    /// A reference to data outside of the pickle.
    Persistent(Id),
    /// Bytes, or an integer of more than 64 bits.
    Other,
}

/// What `torch.save` calls to rebuild a state dict. Everything else may do anything, and is not run here.
const CALLS: [&str; 9] = [
    "collections.OrderedDict",
    "collections.defaultdict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_parameter",
    "torch._tensor._rebuild_from_type_v2",
    "torch.Size",
    "torch.device",
    "_codecs.encode",
];

/// Why a pickle is not read.
#[derive(Debug)]
pub(super) enum Refusal {
    /// What is wrong, as words that follow "found".
    Damaged(String),
    /// A function that Python would call when it opens the pickle, and that no state dict needs.
    Calls(String),
}

/// Longer names of classes do not exist; without the limit a pickle could ask for many copies of a long text.
const LONGEST_NAME: usize = 512;

/// All objects of one pickle.
#[derive(Debug)]
pub(super) struct Objects {
    arena: Vec<Object>,
    /// The object that the pickle is of.
    pub(super) root: Id,
}

impl Objects {
    /// Reads a pickle of protocol 2 to 4.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub(super) fn read(pickle: &[u8]) -> Result<Self, Refusal> {
        let mut machine = Machine { input: pickle, arena: vec![], stack: vec![], marks: vec![], memo: HashMap::new() };
        let length = pickle.len();
        loop {
            let at = length - machine.input.len();
            match machine.step() {
                Ok(None) => {}
                Ok(Some(root)) => return Ok(Self { arena: machine.arena, root }),
                Err(Fault::Damaged) => {
                    return Err(Refusal::Damaged(format!("a pickle that is cut off or damaged at byte {at}")));
                }
                Err(Fault::Opcode(code)) => {
                    return Err(Refusal::Damaged(format!("a pickle with opcode {code:#04x} at byte {at}")));
                }
                Err(Fault::Call(name)) => return Err(Refusal::Calls(name)),
            }
        }
    }

    pub(super) fn get(&self, id: Id) -> &Object {
        self.arena.get(id).unwrap_or(&Object::Other)
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        if let Object::Text(text) = self.get(id) { Some(text) } else { None }
    }

    pub(super) fn int(&self, id: Id) -> Option<usize> {
        if let Object::Int(n) = self.get(id) { usize::try_from(*n).ok() } else { None }
    }

    pub(super) fn tuple(&self, id: Id) -> Option<&[Id]> {
        if let Object::Tuple(items) = self.get(id) { Some(items) } else { None }
    }

    pub(super) fn ints(&self, id: Id) -> Option<Vec<usize>> {
        self.tuple(id)?.iter().map(|&item| self.int(item)).collect()
    }

    pub(super) fn global(&self, id: Id) -> Option<&str> {
        if let Object::Global(name) = self.get(id) { Some(name) } else { None }
    }

    /// The function and the arguments of a call.
    pub(super) fn call(&self, id: Id) -> Option<(&str, &[Id])> {
        let Object::Call(function, arguments) = *self.get(id) else { return None };
        Some((self.global(function)?, self.tuple(arguments)?))
    }
}

enum Fault {
    Damaged,
    Opcode(u8),
    Call(String),
}

struct Machine<'a> {
    input: &'a [u8],
    arena: Vec<Object>,
    stack: Vec<Id>,
    /// Heights of the stack where a MARK lies.
    marks: Vec<usize>,
    memo: HashMap<usize, Id>,
}

impl<'a> Machine<'a> {
    /// Executes one opcode; the root object at the end.
    fn step(&mut self) -> Result<Option<Id>, Fault> {
        let code = self.byte()?;
        match code {
            b'.' => return self.pop().map(Some),
            // PROTO and FRAME say nothing that matters here.
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'N' => self.push(Object::None),
            0x88 | 0x89 => self.push(Object::Bool),
            b'G' => self.float()?,
            b'K' | b'M' | b'J' | 0x8a => self.integer(code)?,
            b'X' | 0x8c | 0x8d | b'T' | b'U' => self.text(code)?,
            b'B' | b'C' | 0x8e => {
                let len = self.length(match code {
                    b'C' => 1,
                    b'B' => 4,
                    _ => 8,
                })?;
                self.other(len)?;
            }
            b'c' | 0x93 => self.global(code)?,
            b'(' => self.marks.push(self.stack.len()),
            b')' => self.push(Object::Tuple(vec![])),
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(code - 0x84))?;
                self.push(Object::Tuple(items));
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Object::Tuple(items));
            }
            b']' => self.push(Object::List(vec![])),
            b'}' => self.push(Object::Dict(vec![])),
            b'a' | b'e' | b's' | b'u' => self.fill(code)?,
            b'q' | b'r' | 0x94 => self.remember(code)?,
            b'h' | b'j' => {
                let key = self.length(if code == b'h' { 1 } else { 4 })?;
                let id = *self.memo.get(&key).ok_or(Fault::Damaged)?;
                self.stack.push(id);
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Object::Persistent(id));
            }
            b'R' | 0x81 => self.call()?,
            // BUILD sets attributes, such as the `_metadata` of a state dict; the object itself stays. POP drops one.
            b'b' | b'0' => drop(self.pop()?),
            _ => return Err(Fault::Opcode(code)),
        }
        Ok(None)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        let (head, tail) = self.input.split_at_checked(len).ok_or(Fault::Damaged)?;
        self.input = tail;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.take(1)?.first().copied().unwrap_or_default())
    }

    /// An unsigned little-endian integer of `bytes` bytes, at most eight.
    fn length(&mut self, bytes: usize) -> Result<usize, Fault> {
        let value = self.take(bytes)?.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
        usize::try_from(value).map_err(|_| Fault::Damaged)
    }

    fn line(&mut self) -> Result<String, Fault> {
        let end = self.input.iter().position(|&byte| byte == b'\n').ok_or(Fault::Damaged)?;
        let line = self.take(end + 1)?;
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        Ok(String::from_utf8_lossy(line).into_owned())
    }

    fn push(&mut self, object: Object) {
        self.stack.push(self.arena.len());
        self.arena.push(object);
    }

    fn pop(&mut self) -> Result<Id, Fault> {
        let floor = self.marks.last().copied().unwrap_or_default();
        if self.stack.len() <= floor { Err(Fault::Damaged) } else { self.stack.pop().ok_or(Fault::Damaged) }
    }

    fn pop_many(&mut self, n: usize) -> Result<Vec<Id>, Fault> {
        let floor = self.marks.last().copied().unwrap_or_default();
        let from = self.stack.len().checked_sub(n).filter(|&from| from >= floor).ok_or(Fault::Damaged)?;
        Ok(self.stack.split_off(from))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, Fault> {
        let mark = self.marks.pop().ok_or(Fault::Damaged)?;
        Ok(self.stack.split_off(mark))
    }

    fn other(&mut self, len: usize) -> Result<(), Fault> {
        self.take(len)?;
        self.push(Object::Other);
        Ok(())
    }

    /// Eight bytes, big-endian.
    fn float(&mut self) -> Result<(), Fault> {
        let bits = self.take(8)?.iter().fold(0u64, |bits, &byte| bits << 8 | u64::from(byte));
        self.push(Object::Float(f64::from_bits(bits)));
        Ok(())
    }

    fn integer(&mut self, code: u8) -> Result<(), Fault> {
        let bytes = match code {
            b'K' => 1,
            b'M' => 2,
            b'J' => 4,
            _ => self.length(1)?,
        };
        if bytes > 8 {
            return self.other(bytes);
        }
        let signed = matches!(code, b'J' | 0x8a) && bytes > 0;
        let value = self.length(bytes)? as u64;
        let unused = 64 - 8 * bytes as u32;
        self.push(Object::Int(if signed { (value << unused) as i64 >> unused } else { value as i64 }));
        Ok(())
    }

    fn text(&mut self, code: u8) -> Result<(), Fault> {
        let len = self.length(match code {
            0x8c | b'U' => 1,
            0x8d => 8,
            _ => 4,
        })?;
        let text = String::from_utf8_lossy(self.take(len)?).into_owned();
        self.push(Object::Text(text));
        Ok(())
    }

    fn global(&mut self, code: u8) -> Result<(), Fault> {
        let name = if code == b'c' {
            format!("{}.{}", self.line()?, self.line()?)
        } else {
            let parts = self.pop_many(2)?;
            let part = |at: usize| match parts.get(at).and_then(|&id| self.arena.get(id)) {
                Some(Object::Text(text)) => Ok(text.as_str()),
                _ => Err(Fault::Damaged),
            };
            format!("{}.{}", part(0)?, part(1)?)
        };
        if name.len() > LONGEST_NAME {
            return Err(Fault::Damaged);
        }
        self.push(Object::Global(name));
        Ok(())
    }

    fn remember(&mut self, code: u8) -> Result<(), Fault> {
        let key = match code {
            b'q' => self.length(1)?,
            b'r' => self.length(4)?,
            _ => self.memo.len(),
        };
        let id = *self.stack.last().ok_or(Fault::Damaged)?;
        self.memo.insert(key, id);
        Ok(())
    }

    /// Appends to the list, or sets items of the dict, below the operands.
    fn fill(&mut self, code: u8) -> Result<(), Fault> {
        let items = match code {
            b'a' => self.pop_many(1)?,
            b's' => self.pop_many(2)?,
            _ => self.pop_to_mark()?,
        };
        let container = *self.stack.last().ok_or(Fault::Damaged)?;
        match (self.arena.get_mut(container), code) {
            (Some(Object::List(list)), b'a' | b'e') => list.extend(items),
            (Some(Object::Dict(dict)), b's' | b'u') if items.len() % 2 == 0 => {
                dict.extend(items.chunks_exact(2).filter_map(|pair| Some((*pair.first()?, *pair.get(1)?))));
            }
            // A call's result may be filled too; it is no container that a state dict needs.
            (Some(Object::Call(..)), _) => {}
            _ => return Err(Fault::Damaged),
        }
        Ok(())
    }

    fn call(&mut self) -> Result<(), Fault> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Some(Object::Global(name)) = self.arena.get(function) else { return Err(Fault::Damaged) };
        if !CALLS.contains(&name.as_str()) {
            return Err(Fault::Call(name.clone()));
        }
        let dict = name.starts_with("collections.");
        self.push(if dict { Object::Dict(vec![]) } else { Object::Call(function, arguments) });
        Ok(())
    }
}
