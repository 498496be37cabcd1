//! Modal's own service: images, which sandboxes there are, and what becomes of them.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::StreamExt;
use serde_json::Value;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use vaquero_sandbox::SandboxError;
use vaquero_sandbox::remote::{Machine, Wanted};

use crate::ModalConfig;
use crate::messages::{
    AppGetOrCreateRequest, AppGetOrCreateResponse, AuthTokenGetResponse, BLOCKED,
    CREATE_IF_MISSING, CommandRouterAccess, GenericResult, Image, ImageDeleteRequest,
    ImageGetOrCreateRequest, ImageGetOrCreateResponse, ImageJoinStreamingRequest,
    ImageJoinStreamingResponse, NetworkAccess, Nothing, Resources, SUCCESS, Sandbox,
    SandboxCreateRequest, SandboxGetTaskIdResponse, SandboxId, SandboxInfo, SandboxListRequest,
    SandboxListResponse, SandboxTag, SandboxWaitRequest, SandboxWaitResponse,
};
use crate::rpc::{Rpc, ascii, failed};

/// What marks a sandbox as this server's, among its tags.
const OWNER: &str = "vaquero";
/// Which of Modal's own clients this one speaks like: it refuses those that it does not know.
const CLIENT_VERSION: &str = "1.6.4";
const CLIENT_TYPE: &str = "1";
/// How images are built.
const BUILDER: &str = "2025.06";
/// The longest that a sandbox may live, in seconds.
const LIFE: u32 = 24 * 3600;
/// How long tokens are used: they are good for longer.
const FRESH: Duration = Duration::from_mins(2);
/// How long before its end another one is asked for.
const EARLY: Duration = Duration::from_secs(30);
/// How long an image may take to be built.
const BUILD: Duration = Duration::from_mins(15);

macro_rules! method {
    ($name:literal) => {
        concat!("/modal.client.ModalClient/", $name)
    };
}

#[derive(Debug)]
pub(crate) struct Control {
    rpc: Rpc,
    environment: String,
    app: String,
    app_id: OnceCell<String>,
    token: Mutex<Option<(Instant, String)>>,
    /// Of images that were asked for.
    images: Mutex<HashMap<String, String>>,
    /// How sandboxes are spoken to.
    routers: Mutex<HashMap<String, Access>>,
}

#[derive(Clone, Debug)]
struct Access {
    url: String,
    rpc: Rpc,
    until: Instant,
}

impl Control {
    pub(crate) fn new(config: &ModalConfig) -> Result<Self, SandboxError> {
        let mut metadata = MetadataMap::new();
        for (name, value) in [
            ("x-modal-token-id", config.token_id.as_str()),
            ("x-modal-token-secret", &config.token_secret),
            ("x-modal-client-version", CLIENT_VERSION),
            ("x-modal-client-type", CLIENT_TYPE),
        ] {
            metadata.insert(name, ascii(value)?);
        }
        Ok(Self {
            rpc: Rpc::new(config.server_url.trim_end_matches('/'), metadata)?,
            environment: config.environment.clone(),
            app: config.app.clone(),
            app_id: OnceCell::new(),
            token: Mutex::default(),
            images: Mutex::default(),
            routers: Mutex::default(),
        })
    }

    async fn app_id(&self) -> Result<String, SandboxError> {
        let made = self.app_id.get_or_try_init(|| async {
            let request = AppGetOrCreateRequest {
                app_name: self.app.clone(),
                environment_name: self.environment.clone(),
                object_creation_type: CREATE_IF_MISSING,
            };
            let made: AppGetOrCreateResponse =
                self.rpc.call(method!("AppGetOrCreate"), request).await?;
            Ok(made.app_id)
        });
        made.await.cloned()
    }

    /// For what concerns sandboxes, a second token is needed.
    async fn trusted(&self) -> Result<Rpc, SandboxError> {
        let mut known = self.token.lock().await;
        let good = known.as_ref().filter(|(taken, _)| taken.elapsed() < FRESH);
        let token = if let Some((_, token)) = good {
            token.clone()
        } else {
            let given: AuthTokenGetResponse =
                self.rpc.call(method!("AuthTokenGet"), Nothing {}).await?;
            *known = Some((Instant::now(), given.token.clone()));
            given.token
        };
        self.rpc.with("x-modal-auth-token", &token)
    }

    /// The image of a name, built if Modal does not have it.
    async fn image(&self, name: &str) -> Result<String, SandboxError> {
        if let Some(known) = self.images.lock().await.get(name) {
            return Ok(known.clone());
        }
        let image = Image { dockerfile_commands: vec![format!("FROM {name}")] };
        let request = ImageGetOrCreateRequest {
            image: Some(image),
            app_id: self.app_id().await?,
            builder_version: BUILDER.to_owned(),
        };
        let made: ImageGetOrCreateResponse =
            self.rpc.call(method!("ImageGetOrCreate"), request).await?;
        let built = async {
            match made.result.filter(|result| result.status != 0) {
                Some(result) => Ok(result),
                None => self.build(&made.image_id).await,
            }
        };
        let built = tokio::time::timeout(BUILD, built).await;
        let result = built.map_err(|_| unbuilt(name, "it takes too long"))??;
        if result.status != SUCCESS {
            return Err(unbuilt(name, &result.exception));
        }
        self.images.lock().await.insert(name.to_owned(), made.image_id.clone());
        Ok(made.image_id)
    }

    /// Waits until an image is built.
    async fn build(&self, image: &str) -> Result<GenericResult, SandboxError> {
        let mut last_entry_id = String::new();
        loop {
            let request = ImageJoinStreamingRequest {
                image_id: image.to_owned(),
                timeout: 55.0,
                last_entry_id: last_entry_id.clone(),
            };
            let path = method!("ImageJoinStreaming");
            let joined = self.rpc.stream::<_, ImageJoinStreamingResponse>(path, request).await;
            let mut steps = joined.map_err(|status| failed(&status))?;
            while let Some(step) = steps.next().await {
                let step = step.map_err(|status| failed(&status))?;
                if !step.entry_id.is_empty() {
                    last_entry_id = step.entry_id;
                }
                if let Some(result) = step.result.filter(|result| result.status != 0) {
                    return Ok(result);
                }
            }
        }
    }

    pub(crate) async fn create(&self, wanted: &Wanted<'_>) -> Result<String, SandboxError> {
        let image_id = match wanted.snapshot {
            Some(snapshot) => snapshot.to_owned(),
            None => self.image(wanted.image).await?,
        };
        let megabytes = u32::try_from(wanted.limits.memory_bytes >> 20).unwrap_or(u32::MAX);
        let resources = Resources {
            memory_mb: megabytes.min(1024),
            memory_mb_max: megabytes,
            milli_cpu: wanted.limits.cpu_millis.min(1000),
            milli_cpu_max: wanted.limits.cpu_millis,
        };
        let definition = Sandbox {
            entrypoint_args: vec!["sleep".to_owned(), LIFE.to_string()],
            image_id,
            resources: Some(resources),
            timeout_secs: LIFE,
            block_network: true,
            network_access: Some(NetworkAccess { network_access_type: BLOCKED }),
            idle_timeout_secs: u32::try_from(wanted.linger.as_secs().max(60)).ok(),
        };
        let tags = [
            (OWNER, wanted.owner),
            ("session", &wanted.key.session),
            ("sandbox", &wanted.key.name),
        ];
        let request = SandboxCreateRequest {
            app_id: self.app_id().await?,
            definition: Some(definition),
            tags: tags.map(|(name, value)| tag(name, value)).into(),
        };
        let made: SandboxId =
            self.trusted().await?.call(method!("SandboxCreateV2"), request).await?;
        Ok(made.sandbox_id)
    }

    /// Those that run: what has ended is gone.
    pub(crate) async fn list(&self, owner: &str) -> Result<Vec<Machine>, SandboxError> {
        let (mut all, mut before) = (Vec::<SandboxInfo>::new(), 0.0);
        loop {
            let request = SandboxListRequest {
                app_id: self.app_id().await?,
                before_timestamp: before,
                tags: vec![tag(OWNER, owner)],
            };
            let page: SandboxListResponse =
                self.trusted().await?.call(method!("SandboxListV2"), request).await?;
            let Some(oldest) = page.sandboxes.last() else { break };
            before = oldest.created_at;
            all.extend(page.sandboxes);
        }
        Ok(all.into_iter().map(|it| Machine { id: it.id, runs: true }).collect())
    }

    /// One of them, if it runs.
    pub(crate) async fn find(&self, id: &str) -> Result<Option<Machine>, SandboxError> {
        let request = SandboxWaitRequest { sandbox_id: id.to_owned(), timeout: 0.0 };
        let asked: Result<SandboxWaitResponse, _> =
            self.trusted().await?.call(method!("SandboxWaitV2"), request).await;
        match asked {
            Ok(found) if found.result.as_ref().is_none_or(|result| result.status == 0) => {
                Ok(Some(Machine { id: id.to_owned(), runs: true }))
            }
            Ok(_) | Err(SandboxError::Gone { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn terminate(&self, id: &str) -> Result<(), SandboxError> {
        self.routers.lock().await.remove(id);
        let request = SandboxId { sandbox_id: id.to_owned() };
        let ended: Result<Nothing, _> =
            self.trusted().await?.call(method!("SandboxTerminateV2"), request).await;
        gone_is_fine(ended)
    }

    pub(crate) async fn forget(&self, image: &str) -> Result<(), SandboxError> {
        let request = ImageDeleteRequest { image_id: image.to_owned() };
        gone_is_fine(self.rpc.call::<_, Nothing>(method!("ImageDelete"), request).await)
    }

    /// What programs in a sandbox belong to.
    pub(crate) async fn task(&self, id: &str) -> Result<String, SandboxError> {
        let request = SandboxId { sandbox_id: id.to_owned() };
        let task: SandboxGetTaskIdResponse =
            self.trusted().await?.call(method!("SandboxGetTaskIdV2"), request).await?;
        Ok(task.task_id)
    }

    /// How to call what answers in a sandbox, with a word that is still good.
    pub(crate) async fn access(&self, id: &str) -> Result<Rpc, SandboxError> {
        let known = self.routers.lock().await.get(id).cloned();
        if let Some(known) = known.as_ref().filter(|known| known.until > Instant::now()) {
            return Ok(known.rpc.clone());
        }
        let request = SandboxId { sandbox_id: id.to_owned() };
        let path = method!("SandboxGetCommandRouterAccess");
        let access: CommandRouterAccess = self.trusted().await?.call(path, request).await?;
        let rpc = match known.filter(|known| known.url == access.url) {
            Some(known) => known.rpc,
            None => Rpc::new(&access.url, MetadataMap::new())?,
        };
        let rpc = rpc.with("authorization", &format!("Bearer {}", access.jwt))?;
        let until = Instant::now() + good_for(&access.jwt);
        let known = Access { url: access.url, rpc: rpc.clone(), until };
        self.routers.lock().await.insert(id.to_owned(), known);
        Ok(rpc)
    }
}

/// How long a word is still good, and a little less.
fn good_for(jwt: &str) -> Duration {
    let said = jwt.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let said = said.and_then(|said| serde_json::from_slice::<Value>(&said).ok());
    let Some(ends) = said.and_then(|said| said["exp"].as_f64()) else { return FRESH };
    #[expect(clippy::disallowed_methods, reason = "what is in a token is the time of day")]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let left = (ends - now.as_secs_f64() - EARLY.as_secs_f64()).clamp(0.0, 86_400.0);
    Duration::from_secs_f64(left)
}

fn tag(name: &str, value: &str) -> SandboxTag {
    SandboxTag { tag_name: name.to_owned(), tag_value: value.to_owned() }
}

fn unbuilt(name: &str, why: &str) -> SandboxError {
    SandboxError::unavailable(
        format!("Modal cannot make an image of {name}: {why:.300}"),
        "name an image that it can fetch without a password",
    )
}

fn gone_is_fine(ended: Result<Nothing, SandboxError>) -> Result<(), SandboxError> {
    match ended {
        Err(SandboxError::Gone { .. }) => Ok(()),
        other => other.map(drop),
    }
}
