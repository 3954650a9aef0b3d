//! A headless Chromium for the tests of pages.

use std::process::{Child, Command, Stdio};

use fantoccini::{Client, ClientBuilder, Locator, elements::Element};
use serde_json::{Value, json};
use testkit::{ReservedPort, eventually};

/// The folder of the pictures in the documents, relative to this crate.
const IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/images");

struct DriverProcess(Child);

impl Drop for DriverProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A browser with one window.
pub(crate) struct Browser {
    pub(crate) client: Client,
    base: String,
    _driver: DriverProcess,
    _port: ReservedPort,
}

/// How a browser differs from a new one.
#[derive(Clone, Copy, Default)]
pub(crate) struct BrowserOptions {
    pub(crate) is_without_scripts: bool,
    /// Width and height of the window.
    pub(crate) size: Option<(u32, u32)>,
    pub(crate) language: Option<&'static str>,
}

impl Browser {
    /// Starts a browser; none, with a word about it, where there is no chromedriver.
    pub(crate) async fn start(base: &str, options: BrowserOptions) -> Option<Self> {
        let port = ReservedPort::choose();
        let driver =
            Command::new("chromedriver").arg(format!("--port={}", port.number())).stdout(Stdio::null()).spawn();
        let Ok(driver) = driver else {
            testkit::skip("there is no chromedriver; `.ci/run` installs it");
            return None;
        };
        let driver = DriverProcess(driver);
        let (width, height) = options.size.unwrap_or((1280, 900));
        let language = options.language.unwrap_or("en-US");
        let mut args = vec![
            "--headless".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--no-first-run".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
            "--hide-scrollbars".to_owned(),
            "--force-prefers-reduced-motion".to_owned(),
        ];
        args.push(format!("--window-size={width},{height}"));
        args.push(format!("--lang={language}"));
        let mut prefs = json!({ "intl.accept_languages": language });
        if options.is_without_scripts {
            prefs["profile.managed_default_content_settings.javascript"] = 2.into();
        }
        let mut chrome = json!({ "args": args, "prefs": prefs });
        if width < 500 {
            // A window of that width does not exist, a phone does
            chrome["mobileEmulation"] =
                json!({ "deviceMetrics": { "width": width, "height": height, "pixelRatio": 1.0, "touch": true } });
        }
        let capabilities = serde_json::Map::from_iter([
            ("goog:chromeOptions".to_owned(), chrome),
            ("goog:loggingPrefs".to_owned(), json!({ "browser": "ALL", "performance": "ALL" })),
        ]);
        let url = format!("http://127.0.0.1:{}", port.number());
        let client = eventually("the browser starts", || async {
            ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new())
                .capabilities(capabilities.clone())
                .connect(&url)
                .await
                .ok()
        })
        .await;
        Some(Self { client, base: base.trim_end_matches('/').to_owned(), _driver: driver, _port: port })
    }

    /// Opens a page of the gateway.
    pub(crate) async fn open(&self, path: &str) {
        self.client.goto(&format!("{}{path}", self.base)).await.expect("the page loads");
    }

    pub(crate) async fn find(&self, css: &str) -> Element {
        eventually(&format!("{css} is there"), || async { self.client.find(Locator::Css(css)).await.ok() }).await
    }

    pub(crate) async fn click(&self, css: &str) {
        // What moves may be replaced between the look and the click
        let click = || async { self.client.find(Locator::Css(css)).await.ok()?.click().await.ok() };
        eventually(&format!("{css} can be clicked"), click).await;
    }

    /// Clicks a button or link by its text.
    pub(crate) async fn click_text(&self, text: &str) {
        let path = format!(
            "//*[self::button or self::a or self::summary][normalize-space(.)={text:?}][not(ancestor::details[not(@open)]) or self::summary]"
        );
        let what = format!("{text} is there");
        eventually(&what, || async {
            for element in self.client.find_all(Locator::XPath(&path)).await.ok()? {
                if element.is_displayed().await.unwrap_or(false) {
                    return element.click().await.ok();
                }
            }
            None
        })
        .await;
    }

    pub(crate) async fn fill(&self, css: &str, text: &str) {
        // What moves may be replaced between the look and the keys
        let fill = || async {
            let field = self.client.find(Locator::Css(css)).await.ok()?;
            field.clear().await.ok()?;
            field.send_keys(text).await.ok()
        };
        eventually(&format!("{css} can be filled"), fill).await;
    }

    /// The text of the page that people see.
    pub(crate) async fn text(&self) -> String {
        self.run("return document.body.innerText").await.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the page shows a text.
    pub(crate) async fn wait_for(&self, text: &str) {
        let shows = || async { self.text().await.contains(text).then_some(()) };
        eventually(&format!("the page shows {text}"), shows).await;
    }

    /// Runs a script as the developer tools do: the policy of the page does not apply.
    pub(crate) async fn run(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap_or_default()
    }

    /// Keeps the open page from doing what it does by itself after a second or more, such as not to wait any longer for
    /// somebody who undoes something: a test may be slower than people are.
    pub(crate) async fn hold_timers(&self) {
        let script = "const set = window.setTimeout;
            window.setTimeout = (action, delay, ...more) => set(action, delay >= 1000 ? 3600000 : delay, ...more)";
        self.client.execute(script, Vec::new()).await.expect("a page");
    }

    pub(crate) async fn path(&self) -> String {
        let url = self.client.current_url().await.expect("a URL");
        format!("{}{}", url.path(), url.query().map(|query| format!("?{query}")).unwrap_or_default())
    }

    /// Takes a picture for the documents. With `UPDATE_DOCS` it replaces the one there.
    pub(crate) async fn picture(&self, name: &str) {
        let png = self.client.screenshot().await.expect("a picture");
        assert!(png.len() > 5_000 && png.len() < 150_000, "{name} has {} bytes", png.len());
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::create_dir_all(IMAGES).expect("a folder");
            std::fs::write(format!("{IMAGES}/{name}.png"), png).expect("a file");
        }
    }

    /// Whether something is wider than the window.
    pub(crate) async fn has_horizontal_scroll(&self) -> bool {
        let script = "return document.documentElement.scrollWidth > document.documentElement.clientWidth + 1";
        self.run(script).await == Value::Bool(true)
    }

    /// What the browser complained about, such as a policy that was broken.
    pub(crate) async fn complaints(&self) -> Vec<String> {
        self.log("browser").await.into_iter().filter_map(|entry| Some(entry["message"].as_str()?.to_owned())).collect()
    }

    /// The addresses that were requested.
    pub(crate) async fn requests(&self) -> Vec<String> {
        let entries = self.log("performance").await;
        let urls = entries.iter().filter_map(|entry| {
            let message: Value = serde_json::from_str(entry["message"].as_str()?).ok()?;
            let message = &message["message"];
            (message["method"] == "Network.requestWillBeSent").then_some(())?;
            Some(message["params"]["request"]["url"].as_str()?.to_owned())
        });
        urls.collect()
    }

    async fn log(&self, kind: &str) -> Vec<Value> {
        let answer = self.client.issue_cmd(LogCommand(kind.to_owned())).await.unwrap_or_default();
        answer.as_array().cloned().unwrap_or_default()
    }

    pub(crate) async fn close(self) {
        self.client.clone().close().await.expect("the browser closes");
    }
}

/// Chromium's own command for its logs.
#[derive(Debug)]
struct LogCommand(String);

impl fantoccini::wd::WebDriverCompatibleCommand for LogCommand {
    fn endpoint(&self, base_url: &url::Url, session_id: Option<&str>) -> Result<url::Url, url::ParseError> {
        base_url.join(&format!("session/{}/se/log", session_id.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(json!({ "type": self.0 }).to_string()))
    }
}
