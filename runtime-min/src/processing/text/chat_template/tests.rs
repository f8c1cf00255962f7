use std::collections::HashMap;

use super::*;

/// Made by `transformers.utils.chat_template_utils.render_jinja_template` of transformers 5.23.0
/// with Jinja2 3.1.6: "expected" is what it returned, "refused" what it raised. `@toy` is the
/// template of the tiny checkpoint, `@qwen` one written for these tests out of what Qwen's
/// templates use. `unix_time` replaced its `datetime.now`.
const CASES: &str = include_str!("../../../../../tests/fixtures/tokenizer/chat_templates.json");

#[derive(Deserialize)]
struct Cases {
    templates: BTreeMap<String, String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    template: String,
    messages: TemplateValue,
    tools: Option<TemplateValue>,
    #[serde(default)]
    add_generation_prompt: bool,
    unix_time: Option<i64>,
    #[serde(default)]
    variables: BTreeMap<String, TemplateValue>,
    expected: Option<String>,
}

impl Case {
    fn rendered(&self, templates: &BTreeMap<String, String>) -> Result<String, ChatTemplateError> {
        let source = templates.get(&self.template).unwrap_or(&self.template);
        let template = of_source(source)?;
        template.render(&self.messages, &self.options())
    }

    fn options(&self) -> RenderOptions {
        RenderOptions {
            add_generation_prompt: self.add_generation_prompt,
            enable_thinking: None,
            tools: self.tools.clone(),
            variables: self.variables.clone().into_iter().collect(),
            unix_time: self.unix_time,
        }
    }
}

fn of_source(source: &str) -> Result<ChatTemplate, ChatTemplateError> {
    let sources = BTreeMap::from([(DEFAULT.to_owned(), source.to_owned())]);
    ChatTemplate::new(TEMPLATE_JINJA, sources, BTreeMap::new())
}

fn load(files: &[(&str, &str)]) -> Result<ChatTemplate, ChatTemplateError> {
    let files: HashMap<&str, &str> = files.iter().copied().collect();
    ChatTemplate::load(&|name| {
        Ok::<_, std::io::Error>(files.get(name).map(|text| text.as_bytes().to_vec()))
    })
}

fn hello() -> serde_json::Value {
    serde_json::json!([{"role": "user", "content": "hello"}])
}

/// Where minijinja is not Jinja: no `%` between texts (it is an error), and loops over the
/// characters of a text do not know their length, so `loop.last`, `loop.length` and `loop.revindex`
/// are wrong.
const DIFFERENT: [&str; 2] = ["percent formatting", "loop over a text"];

#[test]
fn renders_as_transformers_does() {
    let Cases { templates, cases } = serde_json::from_str(CASES).unwrap();
    let mut wrong = Vec::new();
    for case in cases
        .iter()
        .filter(|case| !DIFFERENT.contains(&case.name.as_str()))
    {
        match (case.rendered(&templates), &case.expected) {
            (Ok(text), Some(expected)) if text == *expected => {}
            (Err(_), None) => {}
            (seen, expected) => wrong.push(format!(
                "{}\n  seen {seen:?}\n  want {expected:?}",
                case.name
            )),
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} differ:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}

#[test]
fn thinking_is_an_option() {
    let template = of_source("{{ enable_thinking is defined }}{{ enable_thinking }}").unwrap();
    assert_eq!(
        [None, Some(false), Some(true)].map(|enable_thinking| {
            let options = RenderOptions {
                enable_thinking,
                ..RenderOptions::default()
            };
            template.render(&hello(), &options).unwrap()
        }),
        ["False", "TrueFalse", "TrueTrue"]
    );
}

#[test]
fn the_clock_is_the_present_unless_given() {
    let template = of_source("{{ strftime_now('%Y') }}").unwrap();
    let year: i32 = template
        .render(&hello(), &RenderOptions::default())
        .unwrap()
        .parse()
        .unwrap();
    assert!(year >= 2025);
}

/// Which of the files has the template, and what it makes of a message.
fn from(files: &[(&str, &str)]) -> (String, String) {
    let template = load(files).unwrap();
    let text = template.render(&hello(), &RenderOptions::default());
    (template.file().to_owned(), text.unwrap())
}

#[test]
fn templates_are_looked_for_where_transformers_looks() {
    let config = r#"{"chat_template": "config {{ eos_token }}", "eos_token": {"content": "<e>"}, "bos_token": null}"#;
    let files = [
        ("chat_template.json", r#"{"chat_template": "json"}"#),
        ("chat_template.jinja", "jinja"),
        (TOKENIZER_CONFIG, config),
    ];
    assert_eq!(
        from(&files),
        ("chat_template.json".to_owned(), "json".to_owned())
    );
    assert_eq!(
        from(&files[1..]),
        ("chat_template.jinja".to_owned(), "jinja".to_owned())
    );
    assert_eq!(
        from(&files[2..]),
        (TOKENIZER_CONFIG.to_owned(), "config <e>".to_owned())
    );
    assert!(matches!(
        load(&[(TOKENIZER_CONFIG, "{}")]),
        Err(ChatTemplateError::Missing)
    ));
    assert!(matches!(load(&[]), Err(ChatTemplateError::Missing)));
}

#[test]
fn named_templates_have_a_default_and_one_for_tools() {
    let list = r#"{"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]}"#;
    let template = load(&[(TOKENIZER_CONFIG, list)]).unwrap();
    let tools = Some(TemplateValue::from_json("[]").unwrap());
    assert_eq!(
        template
            .render(&hello(), &RenderOptions::default())
            .unwrap(),
        "d"
    );
    assert_eq!(
        template
            .render(
                &hello(),
                &RenderOptions {
                    tools,
                    ..RenderOptions::default()
                }
            )
            .unwrap(),
        "t"
    );
    let none = load(&[(
        TOKENIZER_CONFIG,
        r#"{"chat_template": [{"name": "rag", "template": "r"}]}"#,
    )]);
    assert!(
        none.unwrap_err()
            .to_string()
            .contains("none of the chat templates is named \"default\" (there are: rag)")
    );
}

#[test]
fn errors_say_where_and_what() {
    let syntax = of_source("a\n{% if %}").unwrap_err().to_string();
    assert!(
        syntax.starts_with("chat_template.jinja: the chat template is not valid")
            && syntax.contains("line 2"),
        "{syntax}"
    );
    let raised = of_source("\n{{ raise_exception('Only user and assistant!') }}").unwrap();
    let raised = raised
        .render(&hello(), &RenderOptions::default())
        .unwrap_err()
        .to_string();
    assert!(
        raised.contains("Only user and assistant! (line 2 of the template)"),
        "{raised}"
    );
    let undefined = of_source("{{ a.b }}")
        .unwrap()
        .render(&hello(), &RenderOptions::default());
    assert!(undefined.unwrap_err().to_string().contains("line 1"));
    let wrong = load(&[("chat_template.json", r#"{"chat_template": 3}"#)])
        .unwrap_err()
        .to_string();
    assert!(
        wrong.contains("chat_template.json: chat_template is neither"),
        "{wrong}"
    );
    assert!(
        load(&[("chat_template.json", "{}")])
            .unwrap_err()
            .to_string()
            .contains("holds no chat_template")
    );
}

fn refusal(source: &str) -> String {
    let rendered = of_source(source).and_then(|t| t.render(&hello(), &RenderOptions::default()));
    rendered.unwrap_err().to_string()
}

#[test]
fn templates_that_do_not_end_are_stopped() {
    let many = "{% for i in range(100000) %}";
    let endless = format!("{many}{many}{many}{}", "{% endfor %}".repeat(3));
    let printed = refusal(&endless);
    assert!(
        printed.contains("is not done after 505000 steps"),
        "{printed}"
    );
    let long = format!("{{% set x = 'a' * 1000000 %}}{many}{{{{ x }}}}{{% endfor %}}");
    assert!(
        refusal(&long).contains("the text is longer than 67108864 bytes"),
        "{}",
        refusal(&long)
    );
    for recursive in [
        "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% block a %}{{ self.a() }}{% endblock %}",
    ] {
        assert!(
            refusal(recursive).contains("recursion limit exceeded"),
            "{}",
            refusal(recursive)
        );
    }
    assert!(refusal("{% include 'default' %}").contains("could not render include"));
}

#[test]
fn deep_templates_and_values_have_room_or_are_refused() {
    let brackets = format!("{{{{ {}{} }}}}", "[".repeat(1000), "]".repeat(1000));
    assert!(
        refusal(&brackets).contains("recursion"),
        "{}",
        refusal(&brackets)
    );
    let sum = format!("{{{{ {}1 }}}}", "1+".repeat(100_000));
    let text = of_source(&sum)
        .unwrap()
        .render(&hello(), &RenderOptions::default())
        .unwrap();
    assert_eq!(text, "100001");
    assert!(refusal(&"x".repeat(limits::LONGEST_SOURCE + 1)).contains("at most 262144 are taken"));
    let nested = "{% set ns = namespace(x=[]) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}";
    assert!(refusal(nested).contains("is not done after"));
    let nested = nested.replace("100000", "20000");
    assert!(
        refusal(&format!("{nested}{{{{ ns.x|tojson }}}}")).contains("nested more than 500 deep")
    );
    let text = of_source(&format!("{nested}{{{{ ns.x }}}}")).unwrap();
    assert_eq!(
        text.render(&hello(), &RenderOptions::default())
            .unwrap()
            .len(),
        40_002
    );
}

/// What held itself could not be printed, compared or hashed.
#[test]
fn nothing_holds_itself() {
    let own = "{% set ns = namespace() %}{% set ns.a = ns %}";
    let two = "{% set a = namespace() %}{% set b = namespace() %}{% set a.b = b %}";
    let listed = "{% set ns = namespace() %}{% set ns.a = [ns] %}";
    let keyed = "{% set ns = namespace() %}{% set x = {ns: 1} %}";
    let held = "{% set ns = namespace() %}{% set x = {'a': {'b': ns}} %}";
    let made = "{% set ns = namespace() %}{% set x = dict(a=ns) %}";
    for source in [own, two, listed, keyed, held, made] {
        let printed = refusal(source);
        assert!(
            printed.contains("a namespace is put into another"),
            "{printed}"
        );
    }
    assert!(refusal("{{ debug() }}").contains("debug"));
    let usual = "{% set ns = namespace(n=1, l=[]) %}{% for i in [2, 3] %}{% set ns.n = ns.n + i \
                 %}{% set ns.l = ns.l + [ns.n] %}{% endfor %}{{ ns.n }} {{ ns.l }}";
    let text = of_source(usual).unwrap();
    let text = text.render(&hello(), &RenderOptions::default()).unwrap();
    assert_eq!(text, "6 [3, 6]");
}

#[test]
fn padding_has_an_end() {
    for wide in [
        "{{ 'x'|indent(18446744073709551615) }}",
        "{{ 'x'|indent(width=9000000000000000000) }}",
        "{{ [1]|batch(9000000000000000000, 1) }}",
        "{{ [1]|slice(1000000000) }}",
        "{{ '%9000000000000000000d'|format(1) }}",
        "{{ '{:>9000000000000000000}'.format(1) }}",
    ] {
        assert!(
            refusal(wide).contains("padding and batches end at 100000"),
            "{wide}: {}",
            refusal(wide)
        );
    }
    let text = of_source(
        "{{ 'a\nb'|indent(2, true) }}{{ 'c\nd'|indent(width=1) }}{{ '%5d'|format(1234567) }}",
    )
    .unwrap();
    assert_eq!(
        text.render(&hello(), &RenderOptions::default()).unwrap(),
        "  a\n  bc\n d1234567"
    );
}

fn refused(messages: &serde_json::Value) -> String {
    of_source("x")
        .unwrap()
        .render(messages, &RenderOptions::default())
        .unwrap_err()
        .to_string()
}

#[test]
fn messages_are_a_list_of_objects() {
    assert!(refused(&serde_json::json!([])).contains("an empty list"));
    assert!(refused(&serde_json::json!({"role": "user"})).contains("a map"));
    assert!(refused(&serde_json::json!([{"role": "user"}, "hi"])).contains("entry 1 is a string"));
}

#[test]
fn floats_are_written_as_python_writes_them() {
    for (value, want) in [
        (0.0, "0.0"),
        (-0.0, "-0.0"),
        (1e16, "1e+16"),
        (1e15, "1000000000000000.0"),
        (1.5e-5, "1.5e-05"),
        (0.0001, "0.0001"),
    ] {
        assert_eq!(python::float(value), want);
    }
}

/// Highest resident memory of this process in bytes.
#[cfg(target_os = "linux")]
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kibibytes = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kibibytes.trim().parse::<u64>().unwrap() << 10
}

/// A template that does a step 60 times.
#[cfg(target_os = "linux")]
fn doubled(step: &str) -> String {
    let steps = format!("{{% for i in range(60) %}}{step}{{% endfor %}}");
    format!("{{% set ns = namespace(a='0123456789' * 100, l=[1, 2]) %}}{steps}{{{{ ns.a }}}}")
}

#[cfg(target_os = "linux")]
#[test]
fn values_that_grow_for_ever_end_before_the_memory_does() {
    let before = peak();
    for step in [
        "{% set ns.a = ns.a ~ ns.a %}",
        "{% set ns.a = ns.a + ns.a %}",
        "{% set ns.a = ns.a * 10 %}",
        "{% set ns.a = [ns.a, ns.a] | join %}",
        "{% set ns.a = ','.join([ns.a, ns.a]) %}",
        "{% set ns.a = ns.a | replace('0', ns.a) %}",
        "{% set ns.a = ns.a.replace('0', ns.a) %}",
        "{% set ns.a = '%s%s' | format(ns.a, ns.a) %}",
        "{% set ns.a = '{0}{0}'.format(ns.a) %}",
        "{% set ns.a = (ns.a | replace('0', '\n')) | indent(1000) %}",
        "{% set a %}{{ ns.a }}{{ ns.a }}{% endset %}{% set ns.a = a %}",
        "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns.a = m(ns.a) %}",
        "{% set ns.a %}{% for j in range(90000) %}some words of a template{% endfor %}{% endset %}",
        "{% set ns.l = [ns.l, ns.l] %}",
        "{% set ns.l = {'a': ns.l, 'b': ns.l} %}",
        "{% set ns.l = (ns.l + ns.l) | list %}",
        "{% set ns.l = (ns.l * 100) | list %}",
        "{% set ns.l = ns.l + [ns.l] %}",
        "{% set ns.l = [range(90000) | list] + ns.l %}",
    ] {
        let printed = refusal(&doubled(step));
        let is_told = ["bytes", "entries", "times", "too large", "steps"];
        assert!(
            is_told.iter().any(|words| printed.contains(words)),
            "{step}: {printed}"
        );
    }
    let grown = peak() - before;
    assert!(grown < 1 << 30, "{} MiB", grown >> 20);
    // without loops
    let straight = "{% set a = a ~ a %}".repeat(60);
    let printed = refusal(&format!("{{% set a = 'ab' %}}{straight}"));
    assert!(
        printed.contains("a value of it has more than 8388608 bytes"),
        "{printed}"
    );
}

#[test]
fn operators_and_branches_do_what_they_did() {
    let template = "\
{% set a = 1 + 2 * 3 %}{{ a }} {{ 1.5 + 1 }} {{ 'a' ~ 1 ~ none }} {{ 'ab' * 2 }} {{ [1] + [2, 3] }} \
{% macro m(x, y=2) %}<{{ x + y }}>{% endmacro %}{{ m(1) }}{{ m(1, y=5) }} \
{% for x in [1, 2, 3] if x > 1 %}{{ loop.index }}{{ 'l' if loop.last else 'n' }}{% else %}e{% endfor %} \
{% for x in [] %}x{% else %}empty{% endfor %} {{ 'yes' if a > 6 and not false else 'no' }} \
{% set c %}cap{{ a }}{% endset %}{{ c | upper }} {{ missing }}{{ missing | default('d') }} \
{{ 'a,b'.split(',') | join('-') }} {{ 'aXbX' | replace('X', '') }} {{ {'k': [1, 'v']} }} \
{% for x in [[1, [2]], [3]] recursive %}{% if x is sequence %}({{ loop(x) }}){% else %}{{ x }}{% endif %}{% endfor %}";
    let rendered = of_source(template)
        .unwrap()
        .render(&hello(), &RenderOptions::default());
    let plain = {
        let mut environment = super::environment().unwrap();
        environment.set_syntax(super::config().unwrap().syntax_config);
        environment.set_unknown_method_callback(super::python::method);
        environment.render_str(template, ()).unwrap()
    };
    assert_eq!(rendered.unwrap(), plain);
}
