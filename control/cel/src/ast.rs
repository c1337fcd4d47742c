//! The tree that parsing makes, checking resolves and evaluation walks.

use std::sync::Arc;

use crate::functions::Function;

#[derive(Clone, Debug)]
pub struct Expr {
    pub node: Node,
    /// Byte offset of what stands for the whole: a call's bracket, an operator, a name.
    pub at: u32,
    /// How many levels are below, this one included.
    pub depth: u16,
}

#[derive(Clone, Debug)]
pub enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
}

#[derive(Clone, Debug)]
pub enum Node {
    Literal(Literal),
    Ident(String),
    /// The name of a type, as a value; made by the checker.
    TypeName(String),
    Select(Box<Select>),
    Index {
        operand: Box<Expr>,
        index: Box<Expr>,
        optional: bool,
    },
    Call(Box<Call>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Conditional(Box<[Expr; 3]>),
    List(Vec<Item>),
    Map(Vec<Entry>),
    Struct {
        name: String,
        fields: Vec<Field>,
    },
    Comprehension(Box<Comprehension>),
    OptMap(Box<OptMap>),
}

#[derive(Clone, Debug)]
pub struct Select {
    pub operand: Expr,
    pub field: String,
    /// `has(operand.field)`
    pub test: bool,
    /// `operand.?field`
    pub optional: bool,
}

#[derive(Clone, Debug)]
pub struct Call {
    pub function: String,
    pub target: Option<Expr>,
    pub args: Vec<Expr>,
    /// What is called; found by the checker.
    pub resolved: Option<&'static Function>,
}

#[derive(Clone, Debug)]
pub struct Item {
    pub optional: bool,
    pub value: Expr,
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub optional: bool,
    pub key: Expr,
    pub value: Expr,
}

#[derive(Clone, Debug)]
pub struct Field {
    pub optional: bool,
    pub name: String,
    pub value: Expr,
    pub at: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Macro {
    All,
    Exists,
    ExistsOne,
    Map,
    Filter,
    TransformList,
    TransformMap,
    TransformMapEntry,
}

#[derive(Clone, Debug)]
pub struct Comprehension {
    pub kind: Macro,
    pub range: Expr,
    pub first: String,
    pub second: Option<String>,
    /// The condition of `all`, `exists`, `filter`; the filter of a transformation.
    pub condition: Option<Expr>,
    pub transform: Option<Expr>,
}

/// `target.optMap(name, body)`; `flat` for `optFlatMap`.
#[derive(Clone, Debug)]
pub struct OptMap {
    pub target: Expr,
    pub name: String,
    pub body: Expr,
    pub flat: bool,
}

impl Expr {
    /// `a.b.c` as text, if it is nothing but names.
    pub fn qualified_name(&self) -> Option<String> {
        match &self.node {
            Node::Ident(name) => Some(name.clone()),
            Node::Select(s) if !s.test && !s.optional => {
                Some(format!("{}.{}", s.operand.qualified_name()?, s.field))
            }
            _ => None,
        }
    }
}
