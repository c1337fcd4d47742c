//! Tokens into a tree, with the macros expanded. Bounded in length and depth, so that neither this
//! nor any later walk of the tree can exhaust the stack.

use crate::ast::{
    Call, Comprehension, Entry, Expr, Field, Item, Literal, Macro, Node, OptMap, Select,
};
use crate::error::Issue;
use crate::limits::{DEPTH_MAX, EXPRESSION_CHARS_MAX};
use crate::token::{At, Token, tokens};

const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

pub fn parse(text: &str) -> Result<Expr, Issue> {
    // Counting stops at the limit, however long the text is.
    if text.chars().nth(EXPRESSION_CHARS_MAX).is_some() {
        let message = format!(
            "expression code point size exceeds limit: size: {}, limit {EXPRESSION_CHARS_MAX}",
            text.chars().count()
        );
        return Err(Issue { at: 0, message });
    }
    let mut parser = Parser { tokens: tokens(text)?, next: 0, nested: 0 };
    let expr = parser.expression()?;
    match parser.peek() {
        Token::End => Ok(expr),
        _ => Err(parser.unexpected("<EOF>")),
    }
}

struct Parser {
    tokens: Vec<At>,
    next: usize,
    /// Brackets and prefixes that are open.
    nested: u16,
}

type Parsed = Result<Expr, Issue>;

/// Operators of two operands: how tightly they bind, and the function that they call. One table and one
/// loop rather than a function for each level: brackets nest, and every level would be a stack frame.
const BINARY: [(&str, u8, &str); 14] = [
    ("||", 1, "_||_"),
    ("&&", 2, "_&&_"),
    ("<", 3, "_<_"),
    ("<=", 3, "_<=_"),
    (">", 3, "_>_"),
    (">=", 3, "_>=_"),
    ("==", 3, "_==_"),
    ("!=", 3, "_!=_"),
    ("in", 3, "@in"),
    ("+", 4, "_+_"),
    ("-", 4, "_-_"),
    ("*", 5, "_*_"),
    ("/", 5, "_/_"),
    ("%", 5, "_%_"),
];

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.next].token
    }

    fn at(&self) -> u32 {
        self.tokens[self.next].at
    }

    fn advance(&mut self) -> Token {
        let token = self.peek().clone();
        if token != Token::End {
            self.next += 1;
        }
        token
    }

    fn is(&self, mark: &str) -> bool {
        matches!(self.peek(), Token::Mark(m) if *m == mark)
    }

    fn eat(&mut self, mark: &str) -> bool {
        let there = self.is(mark);
        if there {
            self.next += 1;
        }
        there
    }

    fn expect(&mut self, mark: &str) -> Result<(), Issue> {
        match self.eat(mark) {
            true => Ok(()),
            false => Err(self.unexpected(&format!("'{mark}'"))),
        }
    }

    #[inline(never)]
    fn unexpected(&self, expected: &str) -> Issue {
        let found = match self.peek() {
            Token::End => "<EOF>".to_owned(),
            Token::Ident(name) => name.clone(),
            Token::Mark(mark) => (*mark).to_owned(),
            Token::String(text) => format!("\"{text}\""),
            Token::Int(n) => n.to_string(),
            Token::IntMin => i64::MIN.unsigned_abs().to_string(),
            Token::Uint(n) => format!("{n}u"),
            Token::Double(n) => n.to_string(),
            Token::Bytes(_) => "b\"…\"".to_owned(),
        };
        let message = format!("Syntax error: mismatched input '{found}' expecting {expected}");
        Issue { at: self.at(), message }
    }

    fn enter(&mut self) -> Result<(), Issue> {
        self.nested += 1;
        match self.nested > DEPTH_MAX {
            true => Err(too_deep(self.at())),
            false => Ok(()),
        }
    }

    fn expression(&mut self) -> Parsed {
        self.enter()?;
        let condition = self.binary(1)?;
        let expr = if self.is("?") {
            let at = self.at();
            self.next += 1;
            let yes = self.binary(1)?;
            self.expect(":")?;
            let no = self.expression()?;
            let depth = condition.depth.max(yes.depth).max(no.depth);
            node(Node::Conditional(Box::new([condition, yes, no])), at, depth)?
        } else {
            condition
        };
        self.nested -= 1;
        Ok(expr)
    }

    /// The operator that is next, if it binds at least that tightly.
    fn operator(&self, least: u8) -> Option<(u8, &'static str)> {
        let written = match self.peek() {
            Token::Mark(mark) => *mark,
            Token::Ident(name) if name == "in" => "in",
            _ => return None,
        };
        let found = BINARY.iter().find(|(mark, level, _)| *mark == written && *level >= least);
        found.map(|(_, level, function)| (*level, *function))
    }

    fn binary(&mut self, least: u8) -> Parsed {
        let mut left = self.unary()?;
        // `a || b || c` is one node, however long: not a tree as deep as it is long.
        let mut chained = "";
        while let Some((level, function)) = self.operator(least) {
            let at = self.at();
            self.next += 1;
            let right = self.binary(level + 1)?;
            left = match (function, &mut left.node) {
                ("_||_", Node::Or(all)) | ("_&&_", Node::And(all)) if chained == function => {
                    left.depth = left.depth.max(right.depth.saturating_add(1));
                    all.push(right);
                    left
                }
                _ => pair(function, left, right, at)?,
            };
            chained = function;
        }
        Ok(left)
    }

    fn unary(&mut self) -> Parsed {
        let at = self.at();
        let mark = match self.peek() {
            Token::Mark(mark @ ("!" | "-")) => *mark,
            _ => {
                let primary = self.primary()?;
                return self.postfix(primary);
            }
        };
        self.next += 1;
        // Signs belong to numbers.
        let number = match (mark, self.peek()) {
            ("-", Token::Int(n)) => Some(Literal::Int(-n)),
            ("-", Token::IntMin) => Some(Literal::Int(i64::MIN)),
            ("-", Token::Double(n)) => Some(Literal::Double(-n)),
            _ => None,
        };
        if let Some(number) = number {
            self.next += 1;
            let literal = node(Node::Literal(number), at, 0)?;
            return self.postfix(literal);
        }
        self.enter()?;
        let operand = self.unary()?;
        self.nested -= 1;
        call(if mark == "!" { "!_" } else { "-_" }, None, vec![operand], at)
    }

    #[inline(never)]
    fn postfix(&mut self, mut expr: Expr) -> Parsed {
        loop {
            let at = self.at();
            if self.eat(".") {
                let optional = self.eat("?");
                let field = self.field_name()?;
                expr = match !optional && self.is("(") {
                    true => self.method(expr, field)?,
                    false => {
                        let depth = expr.depth;
                        let select = Select { operand: expr, field, test: false, optional };
                        node(Node::Select(Box::new(select)), at, depth)?
                    }
                };
            } else if self.eat("[") {
                let optional = self.eat("?");
                let index = self.expression()?;
                self.expect("]")?;
                let depth = expr.depth.max(index.depth);
                let (operand, index) = (Box::new(expr), Box::new(index));
                expr = node(Node::Index { operand, index, optional }, at, depth)?;
            } else if self.is("{") {
                match expr.qualified_name() {
                    Some(name) => expr = self.message(name)?,
                    None => return Err(self.unexpected("<EOF>")),
                }
            } else {
                return Ok(expr);
            }
        }
    }

    #[inline(never)]
    fn method(&mut self, target: Expr, function: String) -> Parsed {
        let at = self.at();
        let args = self.arguments()?;
        method_macro(target, function, args, at)
    }

    fn field_name(&mut self) -> Result<String, Issue> {
        match self.peek() {
            Token::Ident(name)
                if name != "in" && !matches!(name.as_str(), "true" | "false" | "null") =>
            {
                let name = name.clone();
                self.next += 1;
                Ok(name)
            }
            _ => Err(self.unexpected("IDENTIFIER")),
        }
    }

    fn primary(&mut self) -> Parsed {
        let at = self.at();
        let literal = match self.advance() {
            Token::Int(n) => Literal::Int(n),
            Token::Uint(n) => Literal::Uint(n),
            Token::Double(n) => Literal::Double(n),
            Token::String(text) => Literal::String(text),
            Token::Bytes(bytes) => Literal::Bytes(bytes),
            Token::IntMin => {
                let message = "Syntax error: invalid int literal: 9223372036854775808".to_owned();
                return Err(Issue { at, message });
            }
            Token::Ident(name) => return self.name(name, at),
            Token::Mark("(") => {
                let inner = self.expression()?;
                self.expect(")")?;
                return Ok(inner);
            }
            Token::Mark("[") => return self.list(at),
            Token::Mark("{") => return self.map(at),
            // A leading dot asks for the root's scope, which is the only one.
            Token::Mark(".") => {
                let name = self.field_name()?;
                return self.name(name, at);
            }
            token => {
                if token != Token::End {
                    self.next -= 1;
                }
                return Err(self.unexpected("{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}"));
            }
        };
        node(Node::Literal(literal), at, 0)
    }

    #[inline(never)]
    fn name(&mut self, name: String, at: u32) -> Parsed {
        let literal = match name.as_str() {
            "true" => Some(Literal::Bool(true)),
            "false" => Some(Literal::Bool(false)),
            "null" => Some(Literal::Null),
            _ => None,
        };
        if let Some(literal) = literal {
            return node(Node::Literal(literal), at, 0);
        }
        if name == "in" || RESERVED.contains(&name.as_str()) {
            return Err(Issue { at, message: format!("reserved identifier: {name}") });
        }
        if !self.is("(") {
            return node(Node::Ident(name), at, 0);
        }
        let bracket = self.at();
        let mut args = self.arguments()?;
        if name == "has" && args.len() == 1 {
            let arg = args.pop().expect("there is one");
            return has_macro(arg, bracket);
        }
        call(&name, None, args, bracket)
    }

    #[inline(never)]
    fn arguments(&mut self) -> Result<Vec<Expr>, Issue> {
        self.expect("(")?;
        let mut args = Vec::new();
        while !self.is(")") {
            args.push(self.expression()?);
            if !self.eat(",") {
                break;
            }
        }
        self.expect(")")?;
        Ok(args)
    }

    #[inline(never)]
    fn list(&mut self, at: u32) -> Parsed {
        let mut items = Vec::new();
        let mut depth = 0;
        while !self.is("]") {
            let optional = self.eat("?");
            let value = self.expression()?;
            depth = depth.max(value.depth);
            items.push(Item { optional, value });
            if !self.eat(",") {
                break;
            }
        }
        self.expect("]")?;
        node(Node::List(items), at, depth)
    }

    #[inline(never)]
    fn map(&mut self, at: u32) -> Parsed {
        let mut entries = Vec::new();
        let mut depth = 0;
        while !self.is("}") {
            let optional = self.eat("?");
            let key = self.expression()?;
            self.expect(":")?;
            let value = self.expression()?;
            depth = depth.max(key.depth).max(value.depth);
            entries.push(Entry { optional, key, value });
            if !self.eat(",") {
                break;
            }
        }
        self.expect("}")?;
        node(Node::Map(entries), at, depth)
    }

    #[inline(never)]
    fn message(&mut self, name: String) -> Parsed {
        let at = self.at();
        self.expect("{")?;
        let mut fields = Vec::new();
        let mut depth = 0;
        while !self.is("}") {
            let optional = self.eat("?");
            let name = self.field_name()?;
            let field_at = self.at();
            self.expect(":")?;
            let value = self.expression()?;
            depth = depth.max(value.depth);
            fields.push(Field { optional, name, value, at: field_at });
            if !self.eat(",") {
                break;
            }
        }
        self.expect("}")?;
        node(Node::Struct { name, fields }, at, depth)
    }
}

fn too_deep(at: u32) -> Issue {
    Issue { at, message: format!("expression recursion limit exceeded: {DEPTH_MAX}") }
}

fn node(node: Node, at: u32, below: u16) -> Parsed {
    let depth = below + 1;
    match depth > DEPTH_MAX {
        true => Err(too_deep(at)),
        false => Ok(Expr { node, at, depth }),
    }
}

#[inline(never)]
fn pair(function: &str, left: Expr, right: Expr, at: u32) -> Parsed {
    let depth = left.depth.max(right.depth);
    match function {
        "_||_" => node(Node::Or(vec![left, right]), at, depth),
        "_&&_" => node(Node::And(vec![left, right]), at, depth),
        _ => call(function, None, vec![left, right], at),
    }
}

fn call(function: &str, target: Option<Expr>, args: Vec<Expr>, at: u32) -> Parsed {
    let depth = args.iter().chain(&target).map(|e| e.depth).max().unwrap_or(0);
    let call = Call { function: function.to_owned(), target, args, resolved: None };
    node(Node::Call(Box::new(call)), at, depth)
}

fn has_macro(arg: Expr, at: u32) -> Parsed {
    match arg.node {
        Node::Select(select) if !select.test => {
            let depth = select.operand.depth;
            node(Node::Select(Box::new(Select { test: true, ..*select })), at, depth)
        }
        _ => Err(Issue { at, message: "invalid argument to has() macro".to_owned() }),
    }
}

/// How each macro takes its arguments: variables, then at most one condition, then at most one
/// transformation.
fn method_macro(target: Expr, function: String, args: Vec<Expr>, at: u32) -> Parsed {
    // (kind, variables, has a condition, has a transformation)
    let shape = match (function.as_str(), args.len()) {
        ("all", 2) => (Macro::All, 1, true, false),
        ("all", 3) => (Macro::All, 2, true, false),
        ("exists", 2) => (Macro::Exists, 1, true, false),
        ("exists", 3) => (Macro::Exists, 2, true, false),
        ("exists_one" | "existsOne", 2) => (Macro::ExistsOne, 1, true, false),
        ("exists_one" | "existsOne", 3) => (Macro::ExistsOne, 2, true, false),
        ("filter", 2) => (Macro::Filter, 1, true, false),
        ("map", 2) => (Macro::Map, 1, false, true),
        ("map", 3) => (Macro::Map, 1, true, true),
        ("transformList", 3) => (Macro::TransformList, 2, false, true),
        ("transformList", 4) => (Macro::TransformList, 2, true, true),
        ("transformMap", 3) => (Macro::TransformMap, 2, false, true),
        ("transformMap", 4) => (Macro::TransformMap, 2, true, true),
        ("transformMapEntry", 3) => (Macro::TransformMapEntry, 2, false, true),
        ("transformMapEntry", 4) => (Macro::TransformMapEntry, 2, true, true),
        ("sortBy", 2) => return sort_by(target, args, at),
        ("optMap", 2) => return opt_map(target, args, false, at),
        ("optFlatMap", 2) => return opt_map(target, args, true, at),
        _ => return call(&function, Some(target), args, at),
    };
    let (kind, variables, conditional, transforms) = shape;
    let depth = args.iter().map(|e| e.depth).max().unwrap_or(0).max(target.depth);
    let mut args = args.into_iter();
    let first = variable(args.next().expect("counted"))?;
    let second = match variables {
        2 => Some(variable(args.next().expect("counted"))?),
        _ => None,
    };
    if let Some(second) = &second
        && *second == first
    {
        let message = format!("duplicate variable name: {first}");
        return Err(Issue { at, message });
    }
    let condition = if conditional { args.next() } else { None };
    let transform = if transforms { args.next() } else { None };
    let comprehension = Comprehension { kind, range: target, first, second, condition, transform };
    node(Node::Comprehension(Box::new(comprehension)), at, depth)
}

fn opt_map(target: Expr, args: Vec<Expr>, flat: bool, at: u32) -> Parsed {
    let depth = args.iter().map(|e| e.depth).max().unwrap_or(0).max(target.depth);
    let mut args = args.into_iter();
    let name = variable(args.next().expect("counted"))?;
    let body = args.next().expect("counted");
    node(Node::OptMap(Box::new(OptMap { target, name, body, flat })), at, depth)
}

/// `list.sortBy(x, key)`: the list and its keys, which are made by a `map`.
fn sort_by(target: Expr, args: Vec<Expr>, at: u32) -> Parsed {
    let keys = method_macro(target.clone(), "map".to_owned(), args, at)?;
    call("@sortByAssociatedKeys", Some(target), vec![keys], at)
}

fn variable(arg: Expr) -> Result<String, Issue> {
    match arg.node {
        Node::Ident(name) => Ok(name),
        _ => Err(Issue { at: arg.at, message: "argument must be a simple name".to_owned() }),
    }
}
