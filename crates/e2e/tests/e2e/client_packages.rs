//! The clients in `clients/` as packages in a folder, with the snippets of their READMEs.

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::json;

use crate::odd_workers::ODD_WORKER_TS;

#[derive(Clone, Copy)]
pub(crate) enum ClientLanguage {
    Python,
    TypeScript,
}

pub(crate) fn clients() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../clients")
}

/// Writes each fenced block of the README to the file that its first line names in a comment.
pub(crate) fn unpack(language: ClientLanguage, folder: &Path) {
    let (name, fence, comment) = match language {
        ClientLanguage::Python => ("python", "```python\n", "# "),
        ClientLanguage::TypeScript => ("typescript", "```ts\n", "// "),
    };
    let readme = std::fs::read_to_string(clients().join(name).join("README.md")).expect("a README");
    for block in readme.split(fence).skip(1) {
        let snippet = block.split("```").next().expect("an end");
        let file = snippet.lines().next().and_then(|line| line.strip_prefix(comment)).expect("a file's name");
        std::fs::write(folder.join(file), snippet).expect("written");
    }
}

/// Compiles the client as a package beside the snippets, then the snippets.
pub(crate) fn compile(tsc: &str, folder: &Path) {
    let package = folder.join("node_modules/galley-jobs");
    std::fs::create_dir_all(&package).expect("a folder");
    std::fs::copy(clients().join("typescript/package.json"), package.join("package.json")).expect("copied");
    std::fs::write(folder.join("package.json"), r#"{"type":"module"}"#).expect("written");
    unpack(ClientLanguage::TypeScript, folder);
    std::fs::write(folder.join("odd.ts"), ODD_WORKER_TS).expect("written");
    let run = |command: &mut Command| {
        let Output { status, stdout, .. } = command.output().expect("node is installed");
        assert!(status.success(), "{}", String::from_utf8_lossy(&stdout));
    };
    run(Command::new(tsc).arg("-p").arg(clients().join("typescript")).arg("--outDir").arg(package.join("dist/esm")));
    let options = json!({
        "strict": true, "module": "nodenext", "target": "es2022", "lib": ["es2022", "dom"], "types": [],
    });
    let project = json!({ "compilerOptions": options, "files": ["worker.ts", "enqueue.ts", "odd.ts"] });
    std::fs::write(folder.join("tsconfig.json"), project.to_string()).expect("written");
    run(Command::new(tsc).arg("-p").arg(folder));
}
