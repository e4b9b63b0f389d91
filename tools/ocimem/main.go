// ocimem is a registry in memory for the tests: the second implementation beside CNCF Distribution, with the
// referrers API. It is cuelabs.dev's ocimem behind its ociserver, with what the tests need of a server.
//
//	ocimem ADDRESS
//
// Each answer is logged to standard output as "METHOD PATH STATUS". "PUT /spoil/DIGEST" replaces what is stored
// under a digest, in every repository, by the body: a disk that went bad.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"sync"

	"cuelabs.dev/go/oci/ociregistry"
	"cuelabs.dev/go/oci/ociregistry/ocimem"
	"cuelabs.dev/go/oci/ociregistry/ociserver"
)

type registry struct {
	ociregistry.Interface
	spoiled sync.Map // from digest to bytes
}

func (r *registry) GetBlob(
	ctx context.Context, repo string, digest ociregistry.Digest,
) (ociregistry.BlobReader, error) {
	return r.read(r.Interface.GetBlob(ctx, repo, digest))
}

func (r *registry) GetManifest(
	ctx context.Context, repo string, digest ociregistry.Digest,
) (ociregistry.BlobReader, error) {
	return r.read(r.Interface.GetManifest(ctx, repo, digest))
}

func (r *registry) GetTag(ctx context.Context, repo string, tag string) (ociregistry.BlobReader, error) {
	return r.read(r.Interface.GetTag(ctx, repo, tag))
}

func (r *registry) read(found ociregistry.BlobReader, err error) (ociregistry.BlobReader, error) {
	if err != nil {
		return nil, err
	}
	described := found.Descriptor()
	content, ok := r.spoiled.Load(string(described.Digest))
	if !ok {
		return found, nil
	}
	found.Close()
	bytes := content.([]byte)
	described.Size = int64(len(bytes))
	return ocimem.NewBytesReader(bytes, described), nil
}

// PushManifest tells what is wrong with a manifest as the specification has it; ocimem's own errors have no code,
// which makes them a 500.
func (r *registry) PushManifest(
	ctx context.Context, repo string, tag string, contents []byte, mediaType string,
) (ociregistry.Descriptor, error) {
	described, err := r.Interface.PushManifest(ctx, repo, tag, contents, mediaType)
	if err != nil && strings.HasSuffix(err.Error(), "not found") {
		return described, fmt.Errorf("%w: %v", ociregistry.ErrManifestBlobUnknown, err)
	}
	if err != nil {
		return described, fmt.Errorf("%w: %v", ociregistry.ErrManifestInvalid, err)
	}
	return described, nil
}

// Referrers adds the type and the annotations, which the specification asks for and ocimem leaves out.
func (r *registry) Referrers(
	ctx context.Context, repo string, digest ociregistry.Digest, artifactType string,
) ociregistry.Seq[ociregistry.Descriptor] {
	var whole []ociregistry.Descriptor
	for described, err := range r.Interface.Referrers(ctx, repo, digest, artifactType) {
		if err != nil {
			return ociregistry.ErrorSeq[ociregistry.Descriptor](err)
		}
		if err := r.complete(ctx, repo, &described); err != nil {
			return ociregistry.ErrorSeq[ociregistry.Descriptor](err)
		}
		whole = append(whole, described)
	}
	return ociregistry.SliceSeq(whole)
}

func (r *registry) complete(ctx context.Context, repo string, described *ociregistry.Descriptor) error {
	found, err := r.Interface.GetManifest(ctx, repo, described.Digest)
	if err != nil {
		return err
	}
	defer found.Close()
	var manifest ociregistry.Manifest
	if err := json.NewDecoder(found).Decode(&manifest); err != nil {
		return err
	}
	described.Annotations = manifest.Annotations
	described.ArtifactType = manifest.ArtifactType
	if described.ArtifactType == "" {
		described.ArtifactType = manifest.Config.MediaType
	}
	return nil
}

func (r *registry) spoil(writer http.ResponseWriter, request *http.Request) {
	content, err := io.ReadAll(request.Body)
	if err != nil {
		http.Error(writer, err.Error(), http.StatusBadRequest)
		return
	}
	r.spoiled.Store(strings.TrimPrefix(request.URL.Path, "/spoil/"), content)
	writer.WriteHeader(http.StatusNoContent)
}

// logged remembers the status of an answer.
type logged struct {
	http.ResponseWriter
	status int
}

func (l *logged) WriteHeader(status int) {
	l.status = status
	l.ResponseWriter.WriteHeader(status)
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: ocimem ADDRESS")
	}
	served := &registry{Interface: ocimem.New()}
	paths := http.NewServeMux()
	paths.HandleFunc("/spoil/", served.spoil)
	paths.Handle("/", ociserver.New(served, nil))
	log.SetFlags(0)
	log.SetOutput(os.Stdout)
	log.Fatal(http.ListenAndServe(os.Args[1], http.HandlerFunc(
		func(writer http.ResponseWriter, request *http.Request) {
			seen := &logged{writer, http.StatusOK}
			paths.ServeHTTP(seen, request)
			log.Printf("%s %s %d", request.Method, request.URL.RequestURI(), seen.status)
		})))
}
