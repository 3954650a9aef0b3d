//! The examples of `docs/channels.md`, run from there.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::kit::GalleyKit;

const DOCUMENT: &str = include_str!("../../../../docs/channels.md");

fn examples() -> Vec<&'static str> {
    DOCUMENT.split("\n```sh\n").skip(1).filter_map(|rest| rest.split("\n```\n").next()).collect()
}

fn shell(example: &str, kit: &GalleyKit) -> Command {
    let mut command = Command::new("bash");
    // A stream never ends: the shell becomes curl, so that it can be ended
    let example = if is_stream(example) { format!("exec {example}") } else { example.to_owned() };
    command.args(["-euc", &example]).env("GALLEY", kit.gateway.url("")).stdout(Stdio::piped());
    command
}

fn is_stream(example: &str) -> bool {
    example.starts_with("curl -sN")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_does_what_is_said_of_it() {
    let kit = GalleyKit::start().await;
    let examples = examples();
    assert_eq!(examples.len(), 6, "the document was read");
    let mut published = 0;
    for example in examples {
        if is_stream(example) {
            let mut curl = shell(example, &kit).spawn().expect("curl");
            let lines = BufReader::new(curl.stdout.take().expect("piped")).lines().map_while(Result::ok);
            let data = lines.filter(|line| line.starts_with("data: ")).take(published).count();
            assert_eq!(data, published, "{example}");
            curl.kill().expect("it runs");
            curl.wait().expect("it ends");
            continue;
        }
        let output = shell(example, &kit).output().expect("curl");
        assert!(output.status.success(), "{example}");
        let answers: Vec<Value> =
            serde_json::Deserializer::from_slice(&output.stdout).into_iter().collect::<Result<_, _>>().expect("JSON");
        for answer in &answers {
            let results = answer["results"].as_array().map_or(1, Vec::len);
            match answer["messages"].as_array().map(Vec::len) {
                Some(shown) => assert!(shown == 2 || shown == published, "{answer}"),
                None => published += results,
            }
            assert!(!answer.to_string().contains("\"error\""), "{answer}");
        }
    }
    assert_eq!(published, 6);
}
