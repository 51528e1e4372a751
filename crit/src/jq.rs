//! Filters of the jq language, run by the jaq engine inside crit.

use anyhow::{Result, anyhow, bail};
use jaq_core::load::{Arena, File, Loader};
use jaq_core::{Compiler, Ctx, Vars, data, unwrap_valr};
use jaq_json::{Val, read};
use serde_json::Value;

type Compiled = jaq_core::compile::Filter<jaq_core::Native<data::JustLut<Val>>>;

/// A compiled filter. `$image` inside it is the name of the image at hand.
pub struct Filter {
    compiled: Compiled,
    code: String,
}

impl Filter {
    pub fn compile(code: &str) -> Result<Filter> {
        let definitions = jaq_core::defs()
            .chain(jaq_std::defs())
            .chain(jaq_json::defs());
        let functions = jaq_core::funs()
            .chain(jaq_std::funs())
            .chain(jaq_json::funs());
        let arena = Arena::default();
        let modules = Loader::new(definitions)
            .load(&arena, File { code, path: () })
            .map_err(|errors| {
                anyhow!(
                    "filter {code}: it cannot be parsed: {}",
                    first_words(&format!("{:?}", errors.first().map(|(_, error)| error)))
                )
            })?;
        let compiled = Compiler::default()
            .with_funs(functions)
            .with_global_vars(["$image"])
            .compile(modules)
            .map_err(|errors| {
                let unknown: Vec<String> = errors
                    .iter()
                    .flat_map(|(_, errors)| {
                        errors
                            .iter()
                            .map(|(name, what)| format!("{} {name}", what.as_str()))
                    })
                    .collect();
                anyhow!("filter {code}: {}", unknown.join(", "))
            })?;
        Ok(Filter {
            compiled,
            code: code.to_owned(),
        })
    }

    /// Every output for an input.
    pub fn run(&self, image: &str, input: &Value) -> Result<Vec<Value>> {
        let input = to_val(input)?;
        let image = Val::from(image.to_owned());
        let context = Ctx::<data::JustLut<Val>>::new(&self.compiled.lut, Vars::new([image]));
        let outputs = self.compiled.id.run((context, input)).map(unwrap_valr);
        outputs
            .map(|output| match output {
                Ok(value) => from_val(&value),
                Err(error) => bail!("filter {}: {error}", self.code),
            })
            .collect()
    }
}

fn to_val(value: &Value) -> Result<Val> {
    let text = value.to_string();
    read::parse_single(text.as_bytes())
        .map_err(|error| anyhow!("hand a value to the filter: {error}"))
}

fn from_val(value: &Val) -> Result<Value> {
    let text = value.to_string();
    serde_json::from_str(&text).map_err(|error| {
        anyhow!(
            "take a value from the filter: {error}: {}",
            first_words(&text)
        )
    })
}

fn first_words(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_keys_and_variables_pass() {
        let input = json!({"z": u64::MAX, "a": i64::MIN, "s": "\u{e9}\n"});
        let same = Filter::compile(".").unwrap().run("x", &input).unwrap();
        assert_eq!(same[0].to_string(), input.to_string());
        let name = Filter::compile("$image, (.z | tostring)")
            .unwrap()
            .run("core-1.img", &input)
            .unwrap();
        assert_eq!(name, [json!("core-1.img"), json!(u64::MAX.to_string())]);
    }

    #[test]
    fn errors() {
        for code in ["(", "nosuch", "$nosuch"] {
            let error = Filter::compile(code).map(drop).unwrap_err().to_string();
            assert!(error.starts_with(&format!("filter {code}: ")), "{error}");
        }
        assert!(
            Filter::compile("error(\"no\")")
                .unwrap()
                .run("", &json!(1))
                .unwrap_err()
                .to_string()
                .contains("no")
        );
    }
}
