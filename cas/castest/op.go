package castest

import (
	"strings"

	"github.com/casfs/casfs/cas"
)

var ops = map[string]string{
	"GET ":     cas.OpListVaults,
	"PUT V":    cas.OpCreateVault,
	"GET V":    cas.OpDescribeVault,
	"DELETE V": cas.OpDeleteVault,

	"POST V/archives":     cas.OpUploadArchive,
	"DELETE V/archives/I": cas.OpDeleteArchive,

	"POST V/multipart-uploads":     cas.OpInitiateUpload,
	"GET V/multipart-uploads":      cas.OpListUploads,
	"PUT V/multipart-uploads/I":    cas.OpUploadPart,
	"POST V/multipart-uploads/I":   cas.OpCompleteUpload,
	"GET V/multipart-uploads/I":    cas.OpListParts,
	"DELETE V/multipart-uploads/I": cas.OpAbortUpload,

	"POST V/jobs":         cas.OpInitiateJob,
	"GET V/jobs":          cas.OpListJobs,
	"GET V/jobs/I":        cas.OpDescribeJob,
	"GET V/jobs/I/output": cas.OpJobOutput,

	"PUT V/access-policy":    cas.OpSetAccessPolicy,
	"GET V/access-policy":    cas.OpAccessPolicy,
	"DELETE V/access-policy": cas.OpDeleteAccessPolicy,

	"PUT V/notification-configuration":    cas.OpSetNotification,
	"GET V/notification-configuration":    cas.OpNotificationConfig,
	"DELETE V/notification-configuration": cas.OpDeleteNotification,
}

// opOf names the operation of a request; "" when there is none.
func opOf(method, path string) string {
	segs := strings.Split(strings.TrimPrefix(path, "/"), "/")
	if len(segs) < 2 || segs[1] != "vaults" {
		return ""
	}
	shape := ""
	if len(segs) > 2 {
		shape = "V"
	}
	if len(segs) > 3 {
		shape += "/" + segs[3]
	}
	if len(segs) > 4 {
		shape += "/I"
	}
	if len(segs) > 5 {
		shape += "/" + strings.Join(segs[5:], "/")
	}
	return ops[method+" "+shape]
}
