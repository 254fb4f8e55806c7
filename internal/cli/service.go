package cli

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/internal/cli/version"
)

// service is the service a verb talks to.
type service struct {
	client   *cas.Client
	endpoint string // as shown to people
	appID    string
	secretID string
	local    *localStore // set for the embedded store
}

// connect builds the client for the settings. It contacts nothing but, for --local, opens the store.
func (a *app) connect(log *slog.Logger) (*service, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &a.set
	if s.AppID != "" && s.AppID != "-" && !isDecimal(s.AppID) {
		return nil, usagef("--appid is a number, or - for the key's own account")
	}
	remote := max(s.from["endpoint"], s.from["region"])
	switch {
	case s.Local != "" && remote == s.from["local"]:
		return nil, usagef("--local and --endpoint exclude each other")
	case s.Local != "" && s.from["local"] > remote:
		return a.connectLocal(log)
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
	client, err := cas.New(cas.Options{
		Endpoint:    endpoint,
		AppID:       s.AppID,
		Credentials: creds,
		Logger:      log,
		UserAgent:   "casfs/" + version.Version(),
	})
	if err != nil {
		return nil, usagef("%v", err)
	}
	a.onExit(client.Close)
	return &service{client: client, endpoint: endpoint, appID: s.AppID, secretID: creds.SecretID}, nil
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
		return "", usagef("%v", err)
	}
	return name, nil
}
