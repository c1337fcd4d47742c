//! Expressions and what becomes of them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]

use std::time::{Duration, Instant};

use rimward_control_cel::limits::PER_REQUEST;
use rimward_control_cel::schema::Schema;
use rimward_control_cel::{Bindings, Budget, Environment, Type, Value};
use serde_json::{Value as Json, json};

/// What the expressions of these tests may look at.
fn input() -> Json {
    json!({
        "name": "web-1", "replicas": 3, "ratio": 0.5, "flag": true, "none": null,
        "ports": [80, 443, 8080],
        "labels": { "app": "web", "a.b/c": "x" },
        "containers": [
            { "name": "a", "image": "r.example/a:1", "limits": { "cpu": "500m" } },
            { "name": "b", "image": "r.example/b:2" },
        ],
        "big": (0..2000).collect::<Vec<i32>>(),
        "long": "ab".repeat(50_000),
    })
}

fn outcome(expression: &str) -> Result<Json, String> {
    let environment = Environment::new().with("o", Type::Dyn);
    let program = environment.compile(expression).map_err(|e| e.to_string())?;
    let input = input();
    let bindings = Bindings::new().with("o", Value::of(&input, None));
    let mut budget = Budget::new(PER_REQUEST);
    program.eval_json(&bindings, &mut budget).map_err(|e| e.to_string())
}

#[track_caller]
fn check(expression: &str, expected: Json) {
    match outcome(expression) {
        Ok(value) => assert_eq!(value, expected, "{expression}"),
        Err(e) => panic!("{expression}: {e}"),
    }
}

#[track_caller]
fn holds(expression: &str) {
    check(expression, json!(true));
}

/// Fails, with a message that has this in it.
#[track_caller]
fn fails(expression: &str, why: &str) {
    match outcome(expression) {
        Ok(value) => panic!("{expression} gives {value}"),
        Err(e) => assert!(e.contains(why), "{expression}: {e}"),
    }
}

#[test]
fn literals_and_operators() {
    check("1 + 2 * 3 - 4 / 2 % 2", json!(7));
    check("-9223372036854775808", json!(i64::MIN));
    check("0x1F", json!(31));
    check("7u", json!(7));
    check("1.5e3", json!(1500.0));
    check(r#"'a\n\u00e9\x41\101'"#, json!("a\néAA"));
    check(r"r'a\n'", json!("a\\n"));
    check("'''a'b'''", json!("a'b"));
    check("b'ab' + b'c'", json!("YWJj"));
    check("[1, 2] + [3]", json!([1, 2, 3]));
    check("{'a': 1, 'b': 2}.a", json!(1));
    check("true ? 'y' : 'n'", json!("y"));
    check("!(1 > 2) && 2 >= 2 || false", json!(true));
    check("'abc' < 'abd'", json!(true));
    check("1 in [1, 2] && 'a' in {'a': 1}", json!(true));
    check("// a remark\n 1", json!(1));
    holds("1 == dyn(1.0) && dyn(1u) < 2.5 && 9007199254740993 != dyn(9007199254740992.0)");
    holds("[1, 2] == [1, 2] && {'a': [1]} == {'a': [1]} && [1] != [2]");
    holds("dyn(null) == null && dyn('a') != dyn(1)");
}

#[test]
fn objects() {
    check("o.name", json!("web-1"));
    check("o['labels']['a.b/c']", json!("x"));
    check("o.ports[1]", json!(443));
    holds("has(o.labels.app) && !has(o.labels.nope) && !has(o.nope)");
    check("o.containers.map(c, c.name)", json!(["a", "b"]));
    check("o.containers.filter(c, has(c.limits))[0].limits.cpu", json!("500m"));
    check("size(o.labels) + size(o.ports) + size('äb')", json!(7));
    fails("o.nope", "no such key: nope");
    fails("o.ports[9]", "index out of bounds: 9");
    fails("o.name.x", "no such overload");
    fails("o.name + 1", "no such overload");
}

#[test]
fn macros() {
    holds("o.ports.all(p, p > 0) && o.ports.exists(p, p == 443) && o.ports.exists_one(p, p < 100)");
    check("o.ports.map(p, p > 100, p * 2)", json!([886, 16160]));
    check("o.labels.map(k, k)", json!(["a.b/c", "app"]));
    // One that decides outweighs an error.
    holds("[0, 2].exists(x, 4 / x == 2)");
    holds("![0, 2].all(x, 4 / x == 3)");
    fails("[0].all(x, 1 / x == 1)", "division by zero");
    holds("true || 1 / 0 == 1");
    holds("1 / 0 == 1 || true");
    fails("1 / 0 == 1 || false", "division by zero");
    check("[5, 6].transformList(i, v, i + v)", json!([5, 7]));
    check("{'a': 1}.transformMap(k, v, v + 1)", json!({ "a": 2 }));
    check("{'a': 'x'}.transformMapEntry(k, v, {v: k})", json!({ "x": "a" }));
    holds("{'a': 1}.all(k, v, k == 'a' && v == 1) && [3].exists(i, v, i == 0 && v == 3)");
    check("[1, 2].map(x, [3, 4].map(y, x * y))", json!([[3, 4], [6, 8]]));
}

#[test]
fn conversions() {
    check("string(1) + string(2u) + string(1.5) + string(true)", json!("121.5true"));
    check("int('42') + int(3.9) + int(timestamp('1970-01-01T00:00:05Z'))", json!(50));
    check("double('2.5') + double(1)", json!(3.5));
    check("string(b'hi')", json!("hi"));
    check("string(duration('1h30m'))", json!("5400s"));
    holds("type(1) == int && type('') == string && type(o.ports) == list && type(type(1)) == type");
    holds("type(duration('1s')) == google.protobuf.Duration");
    holds("bool('true') && dyn(1) == 1");
    fails("int('x')", "type conversion error");
    fails("9223372036854775807 + 1", "integer overflow");
    fails("uint(-1)", "overflow");
}

#[test]
fn strings() {
    holds("'hello'.contains('ell') && 'hello'.startsWith('he') && 'hello'.endsWith('lo')");
    check("'Hellö'.upperAscii() + 'ABC'.lowerAscii()", json!("HELLöabc"));
    check("'tacocat'.charAt(2) + 'x'.charAt(1)", json!("c"));
    check("['a', 'b'].join('-')", json!("a-b"));
    check("'a,b,c'.split(',', 2)", json!(["a", "b,c"]));
    check("'abc'.split('')", json!(["a", "b", "c"]));
    check("'tacocat'.substring(1, 4)", json!("aco"));
    check("'aXbXc'.replace('X', '-', 1)", json!("a-bXc"));
    check("' a '.trim()", json!("a"));
    check("'hello hello'.indexOf('ell', 2)", json!(7));
    check("'hello hello'.lastIndexOf('ell')", json!(7));
    check(
        "'%s is %d (%.2f, %x, %s)'.format(['a', 3, 1.005, 255, [1, 2]])",
        json!("a is 3 (1.00, ff, [1, 2])"),
    );
    check("strings.quote('a\"b')", json!("\"a\\\"b\""));
    fails("'abc'.substring(2, 1)", "invalid substring range");
    fails("'abc'.charAt(9)", "index out of range");
    fails("'%d'.format(['x'])", "error during formatting");
}

#[test]
fn lists_and_sets() {
    holds("[1, 2, 2].isSorted() && !['b', 'a'].isSorted()");
    check("[1, 3, 2].sum()", json!(6));
    check("[1, 3, 2].max() - [1, 3, 2].min()", json!(2));
    check("[1, 2, 1].indexOf(1) + [1, 2, 1].lastIndexOf(1)", json!(2));
    check("[1, 2, 1].distinct()", json!([1, 2]));
    check("[3, 1, 2].sort()", json!([1, 2, 3]));
    check("['bb', 'a'].sortBy(s, size(s))", json!(["a", "bb"]));
    check("[1, 2, 3, 4].slice(1, 3).reverse()", json!([3, 2]));
    check("[[1], [2, 3]].flatten()", json!([1, 2, 3]));
    check("lists.range(3)", json!([0, 1, 2]));
    check("[1, 2].first().value() + [1, 2].last().value()", json!(3));
    holds(
        "sets.contains([1, 2, 3], [2]) && sets.equivalent([1, 1], [1]) && sets.intersects([1], [1, 2])",
    );
    fails("dyn([]).min()", "min called on empty list");
}

#[test]
fn regexes() {
    holds("'abc-123'.matches('^[a-z]+-[0-9]+$')");
    check("'abc 123'.find('[0-9]+')", json!("123"));
    check("'1 a 2 b 3'.findAll('[0-9]', 2)", json!(["1", "2"]));
    fails("'a'.matches('(')", "invalid matches argument");
    fails("'a'.find('(' + '')", "Illegal regex");
    fails("'a'.find('(a{1000}){1000}' + '')", "Illegal regex");
}

#[test]
fn times() {
    holds(
        "timestamp('2023-01-01T00:00:00Z') + duration('24h') == timestamp('2023-01-02T00:00:00Z')",
    );
    check("timestamp('2023-05-06T07:08:09Z').getHours('+02:00')", json!(9));
    check("timestamp('2023-05-06T07:08:09.5Z').getMilliseconds()", json!(500));
    check("timestamp('2023-01-01T00:00:00Z').getDayOfWeek()", json!(0));
    check("timestamp('2023-05-06T07:08:09Z').getMonth()", json!(4));
    check("duration('1h30m').getMinutes()", json!(90));
    check("string(duration('-1.5s'))", json!("-1.5s"));
    holds(
        "timestamp('2024-01-01T00:00:00Z') - timestamp('2023-12-31T00:00:00Z') == duration('24h')",
    );
    fails("duration('1x')", "invalid duration argument");
    fails("timestamp('yesterday')", "invalid timestamp argument");
}

#[test]
fn addresses() {
    holds(
        "ip('127.0.0.1').isLoopback() && ip('::1').family() == 6 && isIP('10.0.0.1') && !isIP('x')",
    );
    holds(
        "cidr('10.0.0.0/8').containsIP('10.1.2.3') && !cidr('10.0.0.0/8').containsIP(ip('11.0.0.1'))",
    );
    holds(
        "cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16') && !cidr('10.1.0.0/16').containsCIDR('10.0.0.0/8')",
    );
    check("string(cidr('10.1.2.3/8').masked())", json!("10.0.0.0/8"));
    check("cidr('10.1.2.3/8').prefixLength()", json!(8));
    holds("ip.isCanonical('::1') && !ip.isCanonical('0::1') && isCIDR('::/0')");
    holds("type(ip('::1')) == net.IP");
    fails("ip('1.2.3')", "parse error during conversion from string");
    fails("ip('::ffff:1.2.3.4')", "IPv4-mapped");
}

#[test]
fn urls() {
    check(
        "url('https://user@example.com:8443/a%20b?x=1&x=2').getHost()",
        json!("example.com:8443"),
    );
    check(
        "url('https://example.com:8443/p').getPort() + url('https://[::1]/').getHostname()",
        json!("8443::1"),
    );
    check("url('https://example.com/p?x=1&x=2').getQuery()['x']", json!(["1", "2"]));
    check("url('/a/b').getEscapedPath() + url('/a').getScheme()", json!("/a/b"));
    holds("isURL('https://example.com') && !isURL('no url')");
}

#[test]
fn quantities_and_versions() {
    holds(
        "quantity('1Gi').isGreaterThan(quantity('500Mi')) && quantity('100m').isLessThan(quantity('1'))",
    );
    holds(
        "quantity('1k').add(5) == quantity('1005') && quantity('2').sub(quantity('1')).asInteger() == 1",
    );
    check("quantity('-1').sign() + quantity('1').compareTo(quantity('2'))", json!(-2));
    check("quantity('50m').asApproximateFloat()", json!(0.05));
    holds("isQuantity('1.5Mi') && !isQuantity('1x') && !quantity('50m').isInteger()");
    fails("quantity('0e2147483647x')", "quantities must match");
    holds("semver('1.2.3').isLessThan(semver('1.10.0')) && semver('v1.2', true).minor() == 2");
    holds(
        "isSemver('1.2.3') && !isSemver('1.2') && semver('1.2.3').compareTo(semver('1.2.3')) == 0",
    );
}

#[test]
fn optionals_and_formats() {
    check("o.?nope.orValue('x')", json!("x"));
    check("o.?labels.?app.orValue('x')", json!("web"));
    check("o[?'nope'].hasValue()", json!(false));
    check("[?o.?nope, ?o.?name]", json!(["web-1"]));
    check("{?'a': o.?nope, 'b': 1}", json!({ "b": 1 }));
    check("optional.of(2).optMap(x, x * 2).value()", json!(4));
    check("optional.none().or(optional.of(3)).value()", json!(3));
    check("optional.of(1).orValue(1 / 0)", json!(1));
    holds("optional.ofNonZeroValue('') == optional.none()");
    fails("optional.none().value()", "optional.none() dereference");
    holds("!format.dns1123Label().validate('ok').hasValue()");
    holds("format.named('uuid').value().validate('x').value().size() == 1");
    holds("!format.named('nothing').hasValue()");
}

/// Refused before anything runs.
#[test]
fn compile_errors() {
    #[track_caller]
    fn check(expression: &str, expected: &str) {
        let environment = Environment::new().with("o", Type::Dyn);
        let error = environment.compile(expression).unwrap_err().to_string();
        assert_eq!(error, expected, "{expression}");
    }
    check(
        "o.x == nope",
        "compilation failed: ERROR: <input>:1:8: undeclared reference to 'nope' (in container '')\n | o.x == nope\n | .......^",
    );
    check(
        "1 + 'a'",
        "compilation failed: ERROR: <input>:1:3: found no matching overload for '_+_' applied to '(int, string)'\n | 1 + 'a'\n | ..^",
    );
    check(
        "true &&\n nope()",
        "compilation failed: ERROR: <input>:2:6: undeclared reference to 'nope' (in container '')\n |  nope()\n | .....^",
    );
    check(
        "'a'.size(1)",
        "compilation failed: ERROR: <input>:1:9: found no matching overload for 'size' applied to 'string.(int)'\n | 'a'.size(1)\n | ........^",
    );
    check(
        "[1, 'a']",
        "compilation failed: ERROR: <input>:1:5: expected type 'int' but found 'string'\n | [1, 'a']\n | ....^",
    );
}

#[test]
fn syntax_errors() {
    for expression in [
        "",
        "1 +",
        "(",
        "o.",
        "a b",
        "[1",
        "{1}",
        "'open",
        "1 ? 2",
        "o.all()",
        "o.all(1, true)",
        "has(o)",
        "if",
        "9223372036854775808",
        "'\\q'",
        "0x",
        "@",
        "o.map(x)",
        "\"\n\"",
        "1..2",
        "for.x",
        "object{",
        "'\u{0}",
        "b'\\u00ff'",
    ] {
        let error = Environment::new().with("o", Type::Dyn).compile(expression).unwrap_err();
        assert!(
            error.to_string().starts_with("compilation failed: ERROR: <input>:"),
            "{expression}: {error}"
        );
    }
}

#[test]
fn types_of_schemas() {
    let schema = json!({
        "type": "object",
        "properties": {
            "spec": { "type": "object", "properties": {
                "count": { "type": "integer" }, "ratio": { "type": "number" },
                "port": { "x-kubernetes-int-or-string": true },
                "when": { "type": "string", "format": "date-time" },
                "wait": { "type": "string", "format": "duration" },
                "if": { "type": "string" }, "a-b": { "type": "string" },
                "set": { "type": "array", "x-kubernetes-list-type": "set", "items": { "type": "string" } },
                "map": { "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                    "items": { "type": "object", "properties": { "k": { "type": "string" }, "v": { "type": "integer" } } } },
                "labels": { "type": "object", "additionalProperties": { "type": "string" } },
            } },
        },
    });
    let object = json!({
        "metadata": { "name": "n" },
        "spec": {
            "count": 2, "ratio": 1, "port": "80%", "when": "2024-01-01T00:00:00Z", "wait": "90s", "if": "x", "a-b": "y",
            "set": ["a", "b"], "map": [{ "k": "x", "v": 1 }, { "k": "y", "v": 2 }], "labels": { "a": "b" },
        },
    });
    let schema = Schema::read(&schema, "selfType", true).unwrap();
    let environment = Environment::new().with("self", Type::of(&schema));
    let holds = |expression: &str| {
        let program = environment.compile(expression).unwrap_or_else(|e| panic!("{e}"));
        let bindings = Bindings::new().with("self", Value::of(&object, Some(&schema)));
        let value = program.eval_json(&bindings, &mut Budget::new(PER_REQUEST));
        assert_eq!(value, Ok(json!(true)), "{expression}");
    };
    holds("self.spec.count + 1 == 3 && self.spec.ratio == 1.0 && type(self.spec.ratio) == double");
    holds("type(self.spec.port) == string || self.spec.port < 100");
    holds("self.spec.when.getFullYear() == 2024 && self.spec.wait == duration('1m30s')");
    holds("self.spec.__if__ == 'x' && self.spec.a__dash__b == 'y'");
    holds("self.spec.set == ['b', 'a'] && self.spec.set + ['a', 'c'] == ['a', 'b', 'c']");
    holds("self.spec.map + self.spec.map == self.spec.map");
    holds(
        "self.metadata.name == 'n' && self.spec.labels.a == 'b' && self.spec.labels.all(k, k == 'a')",
    );
    let refused = |expression: &str, why: &str| {
        let error = environment.compile(expression).unwrap_err().to_string();
        assert!(error.contains(why), "{expression}: {error}");
    };
    refused("self.spec.nope == 1", "undefined field 'nope'");
    refused(
        "self.spec.count == 1.0",
        "found no matching overload for '_==_' applied to '(int, double)'",
    );
    refused("self.spec.count.x", "type 'int' does not support field selection");
    refused("self.spec.count.all(x, true)", "cannot be range of a comprehension");
    refused("self.metadata.labels", "undefined field 'labels'");
}

/// However an expression is written, it ends: with a cost error, soon.
#[test]
fn costs_are_bounded() {
    #[track_caller]
    fn check(expression: &str) {
        let began = Instant::now();
        let error = outcome(expression).unwrap_err();
        // Where this machine is slower than our prices say, the clock ends it.
        let bounded = ["cost limit exceeded", "longer than", "operation interrupted"];
        let bounded = bounded.iter().any(|text| error.contains(text));
        assert!(bounded, "{expression}: {error}");
        assert!(began.elapsed() < Duration::from_secs(10), "{expression}: {:?}", began.elapsed());
    }
    check("o.big.all(a, o.big.all(b, o.big.all(c, a + b + c >= 0)))");
    check("o.big.map(a, o.big.map(b, o.big.map(c, c)))");
    check("o.big.exists(a, o.big.exists(b, a < 0 && b < 0))");
    check("o.big.all(a, o.long.matches('(a|b)*x' + string(a)) || true)");
    check("o.big.all(a, o.long.replace('a', o.long) == '')");
    check("o.big.all(a, o.long.contains('ba' + o.long + o.long) || true)");
    check("o.big.map(a, o.long + o.long).map(s, s + s).map(s, s + s).map(s, s + s).size() > 0");
    check(
        "o.big.map(a, o.big).flatten().map(a, [a, a, a]).flatten().map(a, [a, a, a]).flatten().distinct().size() > 0",
    );
    check(
        "[o.long, o.long, o.long].map(a, [o.long, o.long].map(b, a.split('').sort().join(b))).size() > 0",
    );
    check("lists.range(1000000).map(a, lists.range(1000000)).size() > 0");
    check("'a'.replace('', o.long).replace('', o.long).size() > 0");
    check("o.big.all(a, sets.contains(o.big, o.big))");
    check("o.big.all(a, '%s %s'.format([o, o]) != '')");
    check("o.big.transformMap(i, v, o.big.transformMap(j, w, w)).size() > 0");
}

#[test]
fn depth_is_bounded() {
    let deep = |n: usize, open: &str, middle: &str, close: &str| {
        format!("{}{middle}{}", open.repeat(n), close.repeat(n))
    };
    for expression in [
        deep(49_999, "(", "1", ")"),
        deep(49_000, "[", "", "]"),
        deep(90_000, "!", "true", ""),
        deep(30_000, "-(", "1", ")"),
        format!("1{}", "+1".repeat(40_000)),
        format!("o{}", ".a".repeat(40_000)),
        format!("o{}", "[0]".repeat(30_000)),
        deep(7_000, "true ? 1 : (", "1", ")"),
    ] {
        let error = Environment::new().with("o", Type::Dyn).compile(&expression).unwrap_err();
        assert!(error.to_string().contains("recursion limit"), "{error}");
    }
    let long = format!("'{}'", "x".repeat(100_001));
    let error = Environment::new().compile(&long).unwrap_err();
    assert!(error.to_string().contains("code point size exceeds limit"), "{error}");
    // What is allowed fits a thread's stack.
    check(&deep(240, "(", "1", ")"), json!(1));
    check(&deep(120, "[", "1", "][0]"), json!(1));
    check(&format!("1{}", "+1".repeat(240)), json!(241));
    check(&format!("true{}", " && true".repeat(5_000)), json!(true));
    check(&deep(60, "[1].map(x, ", "1", ")[0]"), json!(1));
}
