/**
 * Words of certificates: how a name is written, and what is wrong with one.
 *
 * Invariants:
 * - A name is written as GnuTLS writes it, so that rules for names made for its users fit.
 */
import type { X509Certificate } from 'node:crypto'

/** The subject of a certificate in one line, such as `O=Example,CN=alice`. */
export function distinguishedName(certificate: X509Certificate): string {
  // Characters that mean something here are escaped in the values already.
  return certificate.subject
    .split('\n')
    .map((part) => part.replaceAll(' + ', '+').replace(/^emailAddress=/, 'EMAIL='))
    .join(',')
}

const NO_ISSUER = "The certificate hasn't got a known issuer"

const WORDS: Readonly<Record<string, string>> = {
  UNABLE_TO_GET_ISSUER_CERT: NO_ISSUER,
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: NO_ISSUER,
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: NO_ISSUER,
  SELF_SIGNED_CERT_IN_CHAIN: NO_ISSUER,
  DEPTH_ZERO_SELF_SIGNED_CERT: NO_ISSUER,
  CERT_SIGNATURE_FAILURE: NO_ISSUER,
  CERT_UNTRUSTED: NO_ISSUER,
  INVALID_CA: 'The certificate is not trusted',
  CERT_REJECTED: 'The certificate is not trusted',
  INVALID_PURPOSE: 'The certificate is not trusted',
  CERT_HAS_EXPIRED: 'The certificate has expired',
  CERT_NOT_YET_VALID: 'The certificate is not yet activated',
  CERT_REVOKED: 'The certificate has been revoked',
  CRL_HAS_EXPIRED: 'The list of withdrawn certificates has expired',
  UNABLE_TO_GET_CRL: 'No list of withdrawn certificates covers the certificate',
}

/** What is wrong with a certificate, by the code of the TLS library; empty for other codes. */
export function certificateWords(code: string): string {
  const words = WORDS[code]
  if (words !== undefined) return words
  const ofCertificate = /^(CERT_|CRL_|UNABLE_TO_|INVALID_|PATH_LENGTH_|HOSTNAME_)/.test(code)
  return ofCertificate ? `The certificate is not trusted: ${code}` : ''
}
