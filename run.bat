@echo off
rem Set everything up in .venv, once, and start the page. Options go to gralora ui, for instance: run.bat --port 8000
cd /d "%~dp0"
if not exist .venv\Scripts\gralora.exe (
    py -3 -m venv .venv || exit /b 1
    .venv\Scripts\pip install --quiet --disable-pip-version-check --editable . || exit /b 1
)
.venv\Scripts\gralora ui %*
