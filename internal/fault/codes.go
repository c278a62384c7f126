package fault

// Code names a kind of error, for people who look it up and for programs: it stays when the text changes. It ends the
// error's line in brackets. Docs/troubleshooting.md has an entry for each, and a script under cmd shows it (archtest
// sees to both).
type Code string

// How a program was called, and what it was given.
const (
	Usage          Code = "usage"            // flags, arguments, commands: exit code 2
	Parameter      Code = "parameter"        // source.plugin.parameters
	ModeNotAllowed Code = "mode-not-allowed" // above the operator's ceiling
	SecretFile     Code = "secret-file"      // a file with a token or password, missing or empty
	Listen         Code = "listen"           // a socket or address that cannot be served on
	StateDir       Code = "state-dir"
	Output         Code = "output"       // manifests that cannot be written
	Deadline       Code = "deadline"     // our own, before Argo CD's
	CheckFailed    Code = "check-failed" // by doctor
)

// The overlay.
const (
	NoKustomization   Code = "no-kustomization"
	Kustomize         Code = "kustomize"    // kustomize's own word
	RemoteBase        Code = "remote-base"  // one that is refused as it is named
	RemoteFetch       Code = "remote-fetch" // one that is allowed and cannot be had
	OutsideRepository Code = "outside-repository"
	FileUnreadable    Code = "file-unreadable"
	TooLarge          Code = "too-large" // of an overlay, or of a repository
	YAMLAlias         Code = "yaml-alias"
	NoObjects         Code = "no-objects"
	Manifests         Code = "manifests" // on stdin, that cannot be read or not be changed where they stand
	BadReference      Code = "bad-reference"
	WouldFail         Code = "would-fail" // explain found what a render would fail on
)

// The lock.
const (
	LockInvalid  Code = "lock-invalid"
	LockConflict Code = "lock-conflict"
	LockVersion  Code = "lock-version"
	LockNotAFile Code = "lock-not-a-file"
	NotLocked    Code = "not-locked" // an image that the lock alone was to decide, and does not name
)

// Registries, and the resolver in front of them.
const (
	ImageNotFound        Code = "image-not-found"
	RegistryUnauthorized Code = "registry-unauthorized"
	RegistryUnavailable  Code = "registry-unavailable"
	RegistryCertificate  Code = "registry-certificate"
	RegistryCredentials  Code = "registry-credentials" // those that we have cannot be read
	RegistryRefused      Code = "registry-refused"     // what we do not do: plain http, redirects elsewhere
	RegistryNotAllowed   Code = "registry-not-allowed" // a host or address that the operator has not allowed
	ResolverUnavailable  Code = "resolver-unavailable"
	ResolverToken        Code = "resolver-token"
	Webhook              Code = "webhook"        // an event that is not understood, or came too often
	WebhookSecret        Code = "webhook-secret" // an event whose sender proves nothing
	Request              Code = "request"        // one that no program of ours sends
	OIDCConfig           Code = "oidc-config"
	FlushForbidden       Code = "flush-forbidden" // a good token that may not flush this
	RateLimited          Code = "rate-limited"
	NotFlushed           Code = "not-flushed" // somewhere, at least
	IDToken              Code = "id-token"    // one that CI does not hand out
)

// Git.
const (
	GitURL         Code = "git-url"         // a repository that cannot be used as it is named
	GitCredentials Code = "git-credentials" // those that were given are of no use
	GitAccess      Code = "git-access"      // the server refuses them, or the repository is not there
	GitHostKey     Code = "git-host-key"
	GitCertificate Code = "git-certificate"
	GitBranch      Code = "git-branch"
	GitRefused     Code = "git-refused" // a push that a rule of the server forbids
	GitUnavailable Code = "git-unavailable"
	GitBinary      Code = "git-binary"  // what only the git binary can do, which is missing or not to be used
	GitHistory     Code = "git-history" // of a checkout, that cannot be read
)

// A checkout that is moved from Image Updater.
const (
	MigrateFile     Code = "migrate-file"     // one that is not understood, or cannot be edited where it stands
	MigrateConflict Code = "migrate-conflict" // what is said contradicts itself
)

// Kubernetes is a cluster whose Applications cannot be read.
const Kubernetes Code = "kubernetes"

// Unexpected is an error that nobody thought of: no file, no network, a bug.
const Unexpected Code = "unexpected"
