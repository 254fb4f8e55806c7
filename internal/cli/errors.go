package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/fs"
	"github.com/casfs/casfs/internal/control"
	"github.com/casfs/casfs/jobs"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailed  = 1
	exitUsage   = 2
	exitPartial = 3
	exitPending = 75
)

// failure is an error with an exit code and, perhaps, advice. With quiet set
// everything was said already.
type failure struct {
	code   int
	err    error
	advice string
	quiet  bool
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func usagef(format string, args ...any) error {
	return &failure{code: exitUsage, err: fmt.Errorf(format, args...)}
}

func isUsage(err error) bool {
	var f *failure
	return errors.As(err, &f) && f.code == exitUsage
}

// advise adds what to do about an error.
func advise(err error, format string, args ...any) error {
	return &failure{code: exitCode(err), err: err, advice: fmt.Sprintf(format, args...)}
}

// badArgs makes what the client refused to send, without asking the service, a usage error.
func badArgs(err error) error {
	var f *failure
	var refused *cas.Error
	if !errors.Is(err, cas.ErrInvalid) || errors.As(err, &refused) || errors.As(err, &f) {
		return err
	}
	_, text, ok := strings.Cut(err.Error(), cas.ErrInvalid.Error()+": ")
	if !ok {
		text = err.Error()
	}
	return usagef("%s", text)
}

// quietly ends the program with a code; what there was to say has been printed.
func quietly(code int) error {
	return &failure{code: code, err: errors.New("exit"), quiet: true}
}

func exitCode(err error) int {
	var f *failure
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &f):
		return f.code
	case errors.Is(err, cas.ErrNotReady), errors.Is(err, jobs.ErrPending):
		return exitPending
	}
	return exitFailed
}

// complain prints an error: one line, and one with what to do where that is known.
func (a *app) complain(ctx context.Context, cmd *cobra.Command, err error) {
	var f *failure
	if errors.As(err, &f) && f.quiet {
		return
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		fmt.Fprintln(a.errOut, "casfs: interrupted")
		if f != nil && f.advice != "" {
			fmt.Fprintf(a.errOut, "  %s\n", f.advice)
		}
		return
	}
	name := "casfs"
	if cmd != nil {
		name = cmd.CommandPath()
	}
	fmt.Fprintf(a.errOut, "%s: %s\n", name, oneLine(err.Error()))
	if text := advice(err); text != "" {
		fmt.Fprintf(a.errOut, "  %s\n", text)
	} else if isUsage(err) && cmd != nil && !strings.Contains(err.Error(), "(usage:") {
		fmt.Fprintf(a.errOut, "  see: %s --help\n", name)
	}
}

func (a *app) warn(format string, args ...any) {
	fmt.Fprintf(a.errOut, "casfs: warning: %s\n", oneLine(fmt.Sprintf(format, args...)))
}

// oneLine keeps messages that quote a service or a file name on one line of a terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// advice says what to do about an error, "" when there is nothing to add.
func advice(err error) string {
	var f *failure
	if errors.As(err, &f) && f.advice != "" {
		return f.advice
	}
	var se *cas.Error
	errors.As(err, &se)
	is := func(target error) bool { return errors.Is(err, target) }
	switch {
	case is(cas.ErrClockSkew):
		text := "the service refuses signatures made with a wrong clock; set this machine's (timedatectl set-ntp true)"
		if se != nil && !se.Date.IsZero() {
			text = fmt.Sprintf("this machine's clock is %s off the service's; set it (timedatectl set-ntp true)", time.Since(se.Date).Abs().Round(time.Second))
		}
		return text
	case is(cas.ErrCredentials):
		return "check secret id and key (TENCENTCLOUD_SECRET_ID and _KEY, or the configuration file; casfs config show tells which is used)"
	case is(cas.ErrAccessDenied):
		return "the key is valid but may not do this: check --appid, and the account's and the vault's access policies"
	case is(cas.ErrNotFound) && se != nil:
		switch se.Op {
		case cas.OpDescribeJob, cas.OpJobOutput:
			return "jobs and their output are kept for 24 h; casfs job list VAULT shows what there is"
		case cas.OpUploadPart, cas.OpCompleteUpload, cas.OpListParts, cas.OpAbortUpload:
			return "uploads are kept for 24 h; casfs upload list VAULT shows what there is"
		case cas.OpInitiateJob:
			return "casfs vault list shows the vaults there are, an inventory (casfs job start VAULT) the archives in one"
		case cas.OpAccessPolicy, cas.OpNotificationConfig:
			return "casfs vault list shows the vaults there are, casfs vault policy set and notification set make what is missing in one"
		}
		return "casfs vault list shows the vaults there are"
	case is(cas.ErrNotEmpty):
		return "only a vault without archives can be deleted; casfs job start VAULT lists them (an inventory), casfs archive delete removes them"
	case is(cas.ErrNotReady):
		return "try again later, or add --wait"
	case is(cas.ErrExpired):
		return "output is kept for 24 h; start the job again with casfs job start"
	case is(cas.ErrJobFailed):
		return "start it again with casfs job start; casfs job show says why it failed"
	case is(cas.ErrThrottled):
		return "the account has sent too many requests; try again in a while"
	case is(cas.ErrPolicy):
		return "the account's data-retrieval policy allows no more now; try later or change it in the console"
	case is(cas.ErrLimit):
		return "the account's quota is used up"
	case is(cas.ErrMismatch):
		return "the file is not the one this upload was begun with; abort the upload (casfs upload abort) and start anew"
	case is(cas.ErrUnknown):
		return "the answer was lost, so it may have been done: look before repeating it, or it may exist (and cost) twice"
	case is(cas.ErrProtocol):
		return "check the endpoint: what answers there is not the service, or something stands between (a proxy, a portal)"
	case errors.As(err, new(*tls.CertificateVerificationError)):
		return "check the endpoint's name; SSL_CERT_FILE names a file of certificates to be trusted besides the system's"
	case is(cas.ErrUnavailable):
		return "check the network and the endpoint, then try again"
	case is(local.ErrInUse):
		return "stop the other process, or use the service it offers with --endpoint"
	case is(catalog.ErrInUse):
		return "one state directory serves one mount: unmount the other, or give --state-dir"
	case is(catalog.ErrFormat):
		return "this state directory was written by a newer casfs; use that one"
	case is(catalog.ErrDamaged):
		return "nothing was changed; keep a copy of the state directory before trying anything"
	case is(fs.ErrStaleMount):
		return "mount again with --force, or clear it away with casfs umount (nothing is lost: what was written is in the state directory)"
	case is(control.ErrGone):
		return "look at the end of its log; mounting again goes on where it stopped"
	}
	return ""
}
