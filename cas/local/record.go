package local

import (
	"encoding/json"
	"time"
)

// record is one line of a vault's log. Type says which fields count:
//
//	vault   Name At AppID SecretID                   first line of every log; again when the account is another
//	put     ID Shard Size Tree At Desc [Upload Decl] an archive; with Upload, the completion of one;
//	                                                 with JobID, the end of the pull that made it
//	del     ID At                                    archive deleted
//	mpu     Upload ID Shard PartSize At Desc         upload opened; ID is its future archive's
//	part    Upload Off Size Tree [Overlay]           part acknowledged
//	abort   Upload                                   upload aborted or expired
//	job     Job                                      job started
//	end     ID End                                   what became of a job
//	told    ID                                       callbacks of a job delivered or given up
//	gone    ID                                       job expired
//	policy  Text                                     access policy; empty: removed
//	notify  Notify At                                notification configuration; null: removed
type record struct {
	Type string `json:"t"`
	Seq  uint64 `json:"n,omitempty"`
	At   int64  `json:"at,omitempty"` // Unix ms

	Name     string `json:"name,omitempty"`
	AppID    string `json:"appid,omitempty"`
	SecretID string `json:"akid,omitempty"`
	ID       string `json:"id,omitempty"`
	Shard    int    `json:"shard,omitempty"`
	Size     int64  `json:"size,omitempty"`
	Tree     digest `json:"tree,omitzero"`
	Desc     string `json:"desc,omitempty"`
	Upload   string `json:"up,omitempty"`
	Decl     digest `json:"decl,omitzero"` // tree hash the client declared, when it differs from Tree
	PartSize int64  `json:"psize,omitempty"`
	Off      int64  `json:"off,omitempty"`
	Overlay  string `json:"over,omitempty"`

	JobID  string        `json:"by,omitempty"`
	Job    *jobSpec      `json:"job,omitempty"`
	End    *jobEnd       `json:"end,omitempty"`
	Text   string        `json:"text,omitempty"`
	Notify *notification `json:"notify,omitempty"`
}

func (r *record) encode() []byte {
	b, err := json.Marshal(r)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return b
}

// keeps is how much of the room reserved for the log the record leaves on a full disk: deleting works to the last, and
// something can still be fetched when nothing is taken any more.
func (r *record) keeps() int64 {
	switch r.Type {
	case "del", "abort", "gone":
		return 0
	case "job", "end", "told":
		return reserveKept / 2
	}
	return reserveKept
}

// Times are kept and compared in Unix milliseconds, what the wire carries.

func millis(t time.Time) int64 { return t.UnixMilli() }

const wireTime = "2006-01-02T15:04:05.000Z"

func formatTime(ms int64) string { return time.UnixMilli(ms).UTC().Format(wireTime) }

// timeOrNull is for optional times: null, never an empty string.
func timeOrNull(ms int64) *string {
	if ms == 0 {
		return nil
	}
	s := formatTime(ms)
	return &s
}
