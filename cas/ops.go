package cas

// Operation names, as they appear in Error.Op, logs, and castest faults.
const (
	OpCreateVault        = "CreateVault"
	OpDeleteVault        = "DeleteVault"
	OpDescribeVault      = "DescribeVault"
	OpListVaults         = "ListVaults"
	OpUploadArchive      = "UploadArchive"
	OpDeleteArchive      = "DeleteArchive"
	OpInitiateUpload     = "InitiateUpload"
	OpUploadPart         = "UploadPart"
	OpCompleteUpload     = "CompleteUpload"
	OpAbortUpload        = "AbortUpload"
	OpListParts          = "ListParts"
	OpListUploads        = "ListUploads"
	OpInitiateJob        = "InitiateJob"
	OpDescribeJob        = "DescribeJob"
	OpListJobs           = "ListJobs"
	OpJobOutput          = "JobOutput"
	OpSetAccessPolicy    = "SetAccessPolicy"
	OpAccessPolicy       = "AccessPolicy"
	OpDeleteAccessPolicy = "DeleteAccessPolicy"
	OpSetNotification    = "SetNotification"
	OpNotificationConfig = "NotificationConfig"
	OpDeleteNotification = "DeleteNotification"
)
