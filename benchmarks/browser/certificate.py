"""A certificate of our own for one run: browsers give threads and WebGPU to https only, and a LAN address has no other."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
import tempfile
from pathlib import Path

from edgellm.errors import RuntimeUnavailable

VALID = dt.timedelta(days=2)  # a phone's clock may be a day off


def made(address: str) -> tuple[ssl.SSLContext, str]:
    """TLS for this address, and its certificate's SHA-256 as browsers show it, "AB:CD:...".

    The private key is in a file of its own folder while OpenSSL reads it, and nowhere afterwards.

    Raises:
        RuntimeUnavailable: cryptography is not installed.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError as error:
        raise RuntimeUnavailable(f"cryptography cannot be imported ({error})", fix="pip install edgellm[phone]") from error
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edgellm bench")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - VALID)
        .not_valid_after(now + VALID)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    encoding = serialization.Encoding.PEM
    secret = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with tempfile.TemporaryDirectory() as folder:  # others have no way into it
        both = Path(folder) / "both.pem"
        both.write_bytes(secret + certificate.public_bytes(encoding))
        context.load_cert_chain(both)
    return context, ":".join(f"{byte:02X}" for byte in certificate.fingerprint(hashes.SHA256()))
