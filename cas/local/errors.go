package local

import (
	"errors"
	"fmt"
	"net/http"
)

// apiError is a refusal in the service's own form.
type apiError struct {
	status int
	code   string
	msg    string
	close  bool // the connection cannot be used any further
}

func (e *apiError) Error() string { return e.code + ": " + e.msg }

// kind is the "type" member of an error body.
func (e *apiError) kind() string {
	if e.status >= 500 {
		return "Server"
	}
	return "Client"
}

func refuse(status int, code, format string, args ...any) *apiError {
	return &apiError{status: status, code: code, msg: fmt.Sprintf(format, args...)}
}

func badRequest(format string, args ...any) *apiError {
	return refuse(http.StatusBadRequest, "BadRequest", format, args...)
}

func invalid(format string, args ...any) *apiError {
	return refuse(http.StatusBadRequest, "InvalidParameterValueException", format, args...)
}

func missing(name string) *apiError {
	return refuse(http.StatusBadRequest, "MissingParameterValueException", "%s is required", name)
}

func malformed(format string, args ...any) *apiError {
	return refuse(http.StatusBadRequest, "SerializationException", format, args...)
}

func badDigest(format string, args ...any) *apiError {
	return refuse(http.StatusBadRequest, "InvalidDigest", format, args...)
}

func notFound(format string, args ...any) *apiError {
	return refuse(http.StatusNotFound, "ResourceNotFoundException", format, args...)
}

func badSignature(format string, args ...any) *apiError {
	return refuse(http.StatusBadRequest, "InvalidSignatureException", format, args...)
}

func denied(format string, args ...any) *apiError {
	return refuse(http.StatusForbidden, "AccessDeniedException", format, args...)
}

// unavailable is what a client sees of a failure of the machine underneath.
func unavailable(err error) *apiError {
	return refuse(http.StatusInternalServerError, "ServiceUnavailableException", "%v", err)
}

// asAPIError finds the refusal inside err; anything else is the store's own failure.
func asAPIError(err error) *apiError {
	var e *apiError
	if errors.As(err, &e) {
		return e
	}
	return unavailable(err)
}
