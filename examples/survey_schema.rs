//! Prints the JSON schema of a survey: docs/survey.schema.json, which `tests/survey-schema` holds to the code.

use rbd_preflight::observe::survey::Survey;
use schemars::generate::SchemaSettings;
use serde_json::Value;

const TITLE: &str = "rbd-preflight: a survey";
const DESCRIPTION: &str = "What `check --save-survey FILE` writes and `check --survey FILE` reads: all that was seen of \
a guest. Facts are `{\"known\": …}`, or `{\"unknown\": …}` with what came back.";

fn main() {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Survey>();
    schema.insert("title".to_owned(), TITLE.into());
    schema.insert("description".to_owned(), DESCRIPTION.into());
    let mut schema = schema.to_value();
    in_plain_words(&mut schema);
    println!("{schema:#}");
}

/// The descriptions are the types' comments: without their line ends, and without the marks of links to other items.
fn in_plain_words(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(words)) = fields.get_mut("description") {
                *words =
                    words.replace('\n', " ").replace("[`", "`").replace("`]", "`").replace("crate::", "");
            }
            fields.values_mut().for_each(in_plain_words);
        }
        Value::Array(all) => all.iter_mut().for_each(in_plain_words),
        _ => {}
    }
}
