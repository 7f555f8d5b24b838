-- runs once, when the volume is new; POSTGRES_DB has made MLflow's database
CREATE DATABASE optuna;
