package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/internal/cli/version"
	"github.com/casfs/casfs/jobs"
)

// service is the service a verb talks to.
type service struct {
	client   *cas.Client
	opts     cas.Options // the client's
	endpoint string      // as shown to people
	appID    string
	secretID string
	flags    string      // with which another run of the program reaches it, quoted for a shell
	local    *localStore // set for the embedded store
}

// connect builds the client for the settings. It contacts nothing but, for --local, opens the store.
func (a *app) connect(log *slog.Logger) (*service, error) {
	storeLog := log
	if log == nil {
		log, storeLog = a.retryLog(), slog.New(slog.DiscardHandler)
	}
	s := &a.set
	if s.AppID != "" && s.AppID != "-" && !isDecimal(s.AppID) {
		return nil, usagef("--appid is a number, or - for the key's own account")
	}
	remote := max(s.from["endpoint"], s.from["region"])
	switch {
	case s.Local != "" && remote == s.from["local"]:
		other := "--endpoint"
		if s.from["region"] > s.from["endpoint"] {
			other = "--region"
		}
		return nil, usagef("--local and %s exclude each other", other)
	case s.Local != "" && s.from["local"] > remote:
		return a.connectLocal(log, storeLog)
	}
	endpoint := s.Endpoint
	switch {
	case s.Region != "" && s.Endpoint != "" && s.from["region"] == s.from["endpoint"]:
		return nil, usagef("--region and --endpoint exclude each other")
	case s.Region != "" && s.from["region"] > s.from["endpoint"]:
		endpoint = "cas." + s.Region + ".myqcloud.com"
	}
	if endpoint == "" {
		return nil, &failure{code: exitUsage, err: errors.New("which service? neither --local nor --endpoint is set"),
			advice: "give --local DIR for an embedded store, or run casfs config once for a cloud account"}
	}
	creds, err := s.credentials()
	if err != nil {
		return nil, err
	}
	opts := cas.Options{
		Endpoint:    endpoint,
		AppID:       s.AppID,
		Credentials: creds,
		Logger:      log,
		UserAgent:   "casfs/" + version.Version(),
	}
	client, err := cas.New(opts)
	if err != nil {
		return nil, usagef("%v", err)
	}
	a.onExit(client.Close)
	return &service{client: client, opts: opts, endpoint: endpoint, appID: s.AppID, secretID: creds.SecretID, flags: s.serviceFlags()}, nil
}

// probeTimeout bounds the first question to the service, retries included.
const probeTimeout = 30 * time.Second

// probe asks the service one question, to find out before anything is changed
// whether endpoint, key and clock are right and the vault ("": any) is there.
func (s *service) probe(ctx context.Context, vault string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, probeTimeout, fmt.Errorf("%w: no answer within %v", cas.ErrUnavailable, probeTimeout))
	defer cancel()
	opts := s.opts
	opts.Retry = cas.RetryPolicy{MaxAttempts: 3}
	opts.Stall = probeTimeout
	client, err := cas.New(opts)
	if err != nil {
		return err
	}
	defer client.Close()
	if vault != "" {
		_, err = client.DescribeVault(ctx, vault)
	} else {
		_, err = client.ListVaults(ctx, cas.Page{Limit: 1})
	}
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, cas.ErrUnavailable) {
		err = cause
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, cas.ErrNotFound) && vault != "":
		return advise(fmt.Errorf("vault %s does not exist at %s", vault, s.endpoint), "create it with %s", jobs.CreateVault(s.flags, vault))
	case errors.Is(err, cas.ErrUnavailable):
		return advise(fmt.Errorf("%s cannot be reached: %w", s.endpoint, err), "check the network and the endpoint; --offline mounts what is known already")
	}
	var refused *cas.Error
	if errors.As(err, &refused) && !errors.Is(err, cas.ErrProtocol) {
		return fmt.Errorf("%s refuses: %w", s.endpoint, err)
	}
	return fmt.Errorf("%s: %w", s.endpoint, err)
}

// retryLog shows on a terminal that a request is being repeated, so that nobody wonders about the silence.
func (a *app) retryLog() *slog.Logger {
	if !isTerminal(a.errOut) {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(a.errOut, &slog.HandlerOptions{
		ReplaceAttr: func(groups []string, attr slog.Attr) slog.Attr {
			if len(groups) == 0 && attr.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return attr
		},
	}))
}

// serviceFlags are the flags with which another run of the program reaches the same service as this one. What is in the
// files that every run reads need not be said.
func (s *settings) serviceFlags() string {
	var words []string
	add := func(name, value string) {
		if s.from[name] < byEnv || value == "" {
			return
		}
		words = append(words, "--"+name, shellWord(value))
	}
	path := func(p string) string {
		if abs, err := absolute(p); err == nil {
			return abs
		}
		return p
	}
	add("config-file", path(s.ConfigFile))
	switch remote := max(s.from["endpoint"], s.from["region"]); {
	case s.Local != "" && s.from["local"] > remote:
		add("local", path(s.Local))
	case s.Region != "" && s.from["region"] > s.from["endpoint"]:
		add("region", s.Region)
		add("appid", s.AppID)
	default:
		add("endpoint", s.Endpoint)
		add("appid", s.AppID)
	}
	return strings.Join(words, " ")
}

// shellWord quotes a word for a shell where that is needed.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-_./:@%+=,", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func isDecimal(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// credentials come from the environment or a configuration file, never from the command line.
func (s *settings) credentials() (cas.Credentials, error) {
	id, key := os.Getenv("TENCENTCLOUD_SECRET_ID"), os.Getenv("TENCENTCLOUD_SECRET_KEY")
	switch {
	case id != "" && key != "":
		return cas.Credentials{SecretID: id, SecretKey: key}, nil
	case id != "" || key != "":
		return cas.Credentials{}, errors.New("only one of TENCENTCLOUD_SECRET_ID and TENCENTCLOUD_SECRET_KEY is set")
	}
	id, key = s.file["secretid"].value, s.file["secretkey"].value
	if id == "" || key == "" {
		looked := "no configuration file was found"
		if len(s.files) > 0 {
			looked = "looked in " + strings.Join(s.files, ", ")
		}
		return cas.Credentials{}, advise(fmt.Errorf("no credentials (%s)", looked),
			"run casfs config, or set TENCENTCLOUD_SECRET_ID and TENCENTCLOUD_SECRET_KEY")
	}
	return cas.Credentials{SecretID: id, SecretKey: key}, nil
}

// credentialsFrom says where the credentials come from, for casfs config show.
func (s *settings) credentialsFrom() string {
	switch {
	case os.Getenv("TENCENTCLOUD_SECRET_ID") != "":
		return "environment"
	case s.file["secretid"].file != "":
		return s.file["secretid"].file
	}
	return ""
}

// parseVault takes NAME or cas://NAME.
func parseVault(arg string) (string, error) {
	name := strings.TrimSuffix(strings.TrimPrefix(arg, "cas://"), "/")
	if err := cas.ValidVaultName(name); err != nil {
		return "", usagef("%s", strings.Replace(err.Error(), cas.ErrInvalid.Error()+": ", "", 1))
	}
	return name, nil
}
