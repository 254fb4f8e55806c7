package catalog

import (
	"fmt"
	"iter"
)

// Upload returns an upload by its intent. Errors: ErrNotExist.
func (tx *Tx) Upload(intent string) (Upload, error) {
	return load(tx, keyString(tUpload, intent), decodeUpload)
}

// PutUpload stores an upload.
func (tx *Tx) PutUpload(u Upload) error {
	if u.Intent == "" || len(u.Intent) > 1024 {
		return fmt.Errorf("%w: intent of %d bytes", ErrInvalid, len(u.Intent))
	}
	key := keyString(tUpload, u.Intent)
	return tx.put(key, encodeUpload(key, &u))
}

// DeleteUpload removes an upload; one that is absent is no error.
func (tx *Tx) DeleteUpload(intent string) error { return tx.del(keyString(tUpload, intent)) }

// Uploads iterates over all uploads.
func (tx *Tx) Uploads() iter.Seq2[Upload, error] { return each(tx, []byte{tUpload}, decodeUpload) }

// Retrieval returns a retrieval. Errors: ErrNotExist.
func (tx *Tx) Retrieval(id uint64) (Retrieval, error) {
	return load(tx, key1(tRetrieval, id), decodeRetrieval)
}

// PutRetrieval stores a retrieval.
func (tx *Tx) PutRetrieval(r Retrieval) error {
	key := key1(tRetrieval, r.ID)
	return tx.put(key, encodeRetrieval(key, &r))
}

// DeleteRetrieval removes a retrieval; one that is absent is no error.
func (tx *Tx) DeleteRetrieval(id uint64) error { return tx.del(key1(tRetrieval, id)) }

// Retrievals iterates over all retrievals, oldest first.
func (tx *Tx) Retrievals() iter.Seq2[Retrieval, error] {
	return each(tx, []byte{tRetrieval}, decodeRetrieval)
}
