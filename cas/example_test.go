package cas_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/casfs/casfs/cas"
)

func Example() {
	ctx := context.Background()
	c, err := cas.New(cas.Options{
		Endpoint:    "cas.ap-guangzhou.myqcloud.com",
		Credentials: cas.Credentials{SecretID: "AKID…", SecretKey: "…"},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	vault, err := c.NewVault(ctx, "photos")
	if err != nil {
		log.Fatal(err)
	}
	up, err := vault.UploadFile(ctx, "2019.tar", cas.UploadOptions{Description: "photos of 2019"})
	var unfinished *cas.UploadError
	if errors.As(err, &unfinished) { // what has arrived is kept for a day
		up, err = vault.UploadFile(ctx, "2019.tar", cas.UploadOptions{UploadID: unfinished.UploadID})
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("keep this:", up.ArchiveID)

	job, err := vault.Archive(up.ArchiveID).Retrieve(ctx, cas.RetrieveOptions{Tier: cas.Bulk})
	if err != nil {
		log.Fatal(err)
	}
	if err := job.Wait(ctx, time.Minute); err != nil { // hours
		log.Fatal(err)
	}
	if _, err := job.FetchFile(ctx, "2019.tar.back", cas.FetchOptions{}); err != nil {
		log.Fatal(err)
	}
}
