//! Modal's messages, as far as they are needed: names and numbers as in its own SDK (`modal_proto`). Whatever else is in an answer is passed over.

use prost::Message;

/// Makes what is missing.
pub(crate) const CREATE_IF_MISSING: i32 = 1;
/// A build's, and a sandbox's, that went well.
pub(crate) const SUCCESS: i32 = 1;
/// Of networks: nothing is reached.
pub(crate) const BLOCKED: i32 = 2;
/// Of a program's standard output: it is kept to be read.
pub(crate) const PIPE: i32 = 1;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Nothing {}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AppGetOrCreateRequest {
    #[prost(string, tag = "1")]
    pub(crate) app_name: String,
    #[prost(string, tag = "2")]
    pub(crate) environment_name: String,
    #[prost(int32, tag = "3")]
    pub(crate) object_creation_type: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AppGetOrCreateResponse {
    #[prost(string, tag = "1")]
    pub(crate) app_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AuthTokenGetResponse {
    #[prost(string, tag = "1")]
    pub(crate) token: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct GenericResult {
    #[prost(int32, tag = "1")]
    pub(crate) status: i32,
    #[prost(string, tag = "2")]
    pub(crate) exception: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Image {
    #[prost(string, repeated, tag = "6")]
    pub(crate) dockerfile_commands: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ImageGetOrCreateRequest {
    #[prost(message, optional, tag = "2")]
    pub(crate) image: Option<Image>,
    #[prost(string, tag = "4")]
    pub(crate) app_id: String,
    #[prost(string, tag = "9")]
    pub(crate) builder_version: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ImageGetOrCreateResponse {
    #[prost(string, tag = "1")]
    pub(crate) image_id: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) result: Option<GenericResult>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ImageJoinStreamingRequest {
    #[prost(string, tag = "1")]
    pub(crate) image_id: String,
    #[prost(float, tag = "2")]
    pub(crate) timeout: f32,
    #[prost(string, tag = "3")]
    pub(crate) last_entry_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ImageJoinStreamingResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) result: Option<GenericResult>,
    #[prost(string, tag = "3")]
    pub(crate) entry_id: String,
}

/// Asks what has become of a sandbox.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SandboxWaitRequest {
    #[prost(string, tag = "1")]
    pub(crate) sandbox_id: String,
    /// In seconds.
    #[prost(float, tag = "2")]
    pub(crate) timeout: f32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SandboxWaitResponse {
    /// Its status is 0 as long as it runs.
    #[prost(message, optional, tag = "1")]
    pub(crate) result: Option<GenericResult>,
}

/// Names an image by its id.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ImageDeleteRequest {
    #[prost(string, tag = "1")]
    pub(crate) image_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Resources {
    #[prost(uint32, tag = "2")]
    pub(crate) memory_mb: u32,
    #[prost(uint32, tag = "3")]
    pub(crate) milli_cpu: u32,
    #[prost(uint32, tag = "5")]
    pub(crate) memory_mb_max: u32,
    #[prost(uint32, tag = "7")]
    pub(crate) milli_cpu_max: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct NetworkAccess {
    #[prost(int32, tag = "1")]
    pub(crate) network_access_type: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Sandbox {
    #[prost(string, repeated, tag = "1")]
    pub(crate) entrypoint_args: Vec<String>,
    #[prost(string, tag = "3")]
    pub(crate) image_id: String,
    #[prost(message, optional, tag = "5")]
    pub(crate) resources: Option<Resources>,
    #[prost(uint32, tag = "7")]
    pub(crate) timeout_secs: u32,
    #[prost(bool, tag = "11")]
    pub(crate) block_network: bool,
    #[prost(message, optional, tag = "22")]
    pub(crate) network_access: Option<NetworkAccess>,
    #[prost(uint32, optional, tag = "33")]
    pub(crate) idle_timeout_secs: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SandboxTag {
    #[prost(string, tag = "1")]
    pub(crate) tag_name: String,
    #[prost(string, tag = "2")]
    pub(crate) tag_value: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SandboxCreateRequest {
    #[prost(string, tag = "1")]
    pub(crate) app_id: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) definition: Option<Sandbox>,
    #[prost(message, repeated, tag = "4")]
    pub(crate) tags: Vec<SandboxTag>,
}

/// Names a sandbox by its id; an answer to its making, too.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SandboxId {
    #[prost(string, tag = "1")]
    pub(crate) sandbox_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SandboxGetTaskIdResponse {
    #[prost(string, tag = "1")]
    pub(crate) task_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SandboxListRequest {
    #[prost(string, tag = "1")]
    pub(crate) app_id: String,
    #[prost(double, tag = "2")]
    pub(crate) before_timestamp: f64,
    #[prost(message, repeated, tag = "5")]
    pub(crate) tags: Vec<SandboxTag>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SandboxInfo {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(double, tag = "3")]
    pub(crate) created_at: f64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SandboxListResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) sandboxes: Vec<SandboxInfo>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CommandRouterAccess {
    #[prost(string, tag = "1")]
    pub(crate) jwt: String,
    #[prost(string, tag = "2")]
    pub(crate) url: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TaskExecStartRequest {
    #[prost(string, tag = "1")]
    pub(crate) task_id: String,
    #[prost(string, tag = "2")]
    pub(crate) exec_id: String,
    #[prost(string, repeated, tag = "3")]
    pub(crate) command_args: Vec<String>,
    #[prost(int32, tag = "4")]
    pub(crate) stdout_config: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TaskExecStdioReadRequest {
    #[prost(string, tag = "1")]
    pub(crate) task_id: String,
    #[prost(string, tag = "2")]
    pub(crate) exec_id: String,
    #[prost(uint64, tag = "3")]
    pub(crate) offset: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TaskExecStdioReadResponse {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) data: bytes::Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TaskExecStdinWriteRequest {
    #[prost(string, tag = "1")]
    pub(crate) task_id: String,
    #[prost(string, tag = "2")]
    pub(crate) exec_id: String,
    #[prost(uint64, tag = "3")]
    pub(crate) offset: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) data: bytes::Bytes,
    #[prost(bool, tag = "5")]
    pub(crate) eof: bool,
}

/// Names a program of a task.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TaskExec {
    #[prost(string, tag = "1")]
    pub(crate) task_id: String,
    #[prost(string, tag = "2")]
    pub(crate) exec_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TaskExecWaitResponse {
    #[prost(int32, optional, tag = "1")]
    pub(crate) code: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TaskSnapshotFilesystemRequest {
    #[prost(string, tag = "1")]
    pub(crate) task_id: String,
    #[prost(string, tag = "2")]
    pub(crate) snapshot_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TaskSnapshotFilesystemResponse {
    #[prost(string, tag = "1")]
    pub(crate) image_id: String,
}
